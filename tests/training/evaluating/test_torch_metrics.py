"""Metrics by name against scikit-learn, on all of a set, in parts and over ranks."""

import copy
import math
import pickle
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers.thread_ranks import on_threads
from sklearn import metrics as sk
from torch import Tensor, nn

from gdtrain import BatchLoader, MiniBatchLoader, Trainer
from gdtrain.errors import ConfigError, DataError, MissingPackageError
from gdtrain.registry import find
from gdtrain.wording import best_of

N = 61


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def trainer_of(loss: Any, outputs: int, targets: Tensor, metrics: Any, **options: Any) -> Trainer:
    torch.manual_seed(0)
    model = nn.Linear(4, outputs).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = BatchLoader((draw(len(targets), 4), targets))
    return Trainer(model, loss, optimizer, loader, device="cpu", metrics=metrics, **options)


def outputs_of(trainer: Trainer) -> Tensor:
    return trainer.predict(draw(len(trainer.loader.samples), 4)).detach()


CUTS = [None, 1, 7]
CURVES = 1e-6  # torchmetrics has the points of its curves in float32


# ── numbers ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("size", CUTS)
@pytest.mark.parametrize("count", [1, 3])
def test_errors_and_r2_of_numbers(count: int, size: int | None) -> None:
    targets = 1e3 + draw(N, count, seed=1)
    names = ["r2", "rmse", "mae"]
    trainer = trainer_of("mse", count, targets, names, microbatch_size=size)
    found, outputs = trainer.evaluate(), outputs_of(trainer)
    assert found["r2"] == pytest.approx(sk.r2_score(targets, outputs), rel=1e-8)
    expected = math.sqrt(sk.mean_squared_error(targets, outputs))
    assert found["rmse"] == pytest.approx(expected, rel=1e-10)
    assert found["mae"] == pytest.approx(sk.mean_absolute_error(targets, outputs), rel=1e-10)


def test_one_sample_has_an_error_and_no_r2() -> None:
    found = trainer_of("mse", 1, draw(1, 1), ["r2", "rmse"]).evaluate()
    assert math.isnan(found["r2"])
    assert found["rmse"] == pytest.approx(math.sqrt(found["loss"]))


# ── classes ─────────────────────────────────────────────────────────────────────────────────


def labels(ignored: bool = False) -> Tensor:
    found = (draw(N, seed=2) * 1.3).round().long().clamp(-1, 1) + 1
    if ignored:
        found[::6] = -100
    return found


BY_CLASS: dict[str, Callable[..., Any]] = {
    "f1": sk.f1_score,
    "precision": sk.precision_score,
    "recall": sk.recall_score,
}
BY_SCORE: dict[str, Callable[..., Any]] = {
    "auroc": lambda y, p, average: sk.roc_auc_score(y, p, multi_class="ovr", average=average),
    "average_precision": lambda y, p, average: sk.average_precision_score(
        np.eye(3)[y], p, average=average
    ),
}


def made(name: str, loss: Any = None, **options: Any) -> Any:
    """The metric with options, as a configuration makes it."""
    part = find("metric", name)
    return part.make(part.settings.model_validate(options), loss=loss)


@pytest.mark.few(7)
@pytest.mark.parametrize("size", CUTS)
@pytest.mark.parametrize("average", ["macro", "weighted", "micro"])
@pytest.mark.parametrize("ignored", [False, True])
def test_metrics_of_predicted_classes(average: str, size: int | None, ignored: bool) -> None:
    targets = labels(ignored)
    metrics = {name: made(name, average=average, per_class=True) for name in BY_CLASS}
    trainer = trainer_of("cross_entropy", 3, targets, metrics, microbatch_size=size)
    found, counted = trainer.evaluate(), targets != -100
    y, p = targets[counted].numpy(), outputs_of(trainer)[counted].argmax(1).numpy()
    for name, by_sklearn in BY_CLASS.items():
        assert found[name] == pytest.approx(by_sklearn(y, p, average=average), rel=1e-10)
        each = by_sklearn(y, p, average=None)
        assert [found[f"{name}_{k}"] for k in range(3)] == pytest.approx(each.tolist(), rel=1e-10)


@pytest.mark.parametrize("size", CUTS)
@pytest.mark.parametrize("average", ["macro", "weighted"])
def test_metrics_of_scores(average: str, size: int | None) -> None:
    targets = labels()
    metrics = {name: made(name, average=average, per_class=True) for name in BY_SCORE}
    trainer = trainer_of("cross_entropy", 3, targets, metrics, microbatch_size=size)
    found, p = trainer.evaluate(), outputs_of(trainer).softmax(1).numpy()
    for name, by_sklearn in BY_SCORE.items():
        expected = by_sklearn(targets.numpy(), p, average=average)
        assert found[name] == pytest.approx(expected, rel=CURVES)
    for k in range(3):
        one = (targets == k).numpy()
        assert found[f"auroc_{k}"] == pytest.approx(sk.roc_auc_score(one, p[:, k]), rel=CURVES)


@pytest.mark.parametrize("classes", [3, 4])
def test_a_class_that_is_only_predicted_counts_as_in_sklearn(classes: int) -> None:
    targets = labels() % 2  # 0 and 1
    trainer = trainer_of("cross_entropy", classes, targets, list(BY_CLASS))
    found, p = trainer.evaluate(), outputs_of(trainer).argmax(1).numpy()
    for name, by_sklearn in BY_CLASS.items():
        expected = by_sklearn(targets.numpy(), p, average="macro", zero_division=0)
        assert found[name] == pytest.approx(expected, rel=1e-10)


def test_a_class_without_samples_has_no_area_and_counts_for_nothing() -> None:
    targets = labels() % 2 * 2  # 0 and 2
    metrics = {name: made(name, per_class=True) for name in BY_SCORE}
    trainer = trainer_of("cross_entropy", 3, targets, metrics, microbatch_size=7)
    found, p = trainer.evaluate(), outputs_of(trainer).softmax(1).numpy()
    for name, by_sklearn in (
        ("auroc", sk.roc_auc_score),
        ("average_precision", sk.average_precision_score),
    ):
        each = [float(by_sklearn((targets == k).numpy(), p[:, k])) for k in (0, 2)]
        assert found[name] == pytest.approx(sum(each) / 2, rel=CURVES)
        assert math.isnan(found[f"{name}_1"])
    alone = trainer_of("cross_entropy", 3, targets * 0, ["auroc", "average_precision"]).evaluate()
    assert math.isnan(alone["auroc"])
    assert alone["average_precision"] == 1


def test_log_probabilities_have_the_scores_of_their_probabilities() -> None:
    targets = labels()
    trainer = trainer_of(nn.NLLLoss(), 3, targets, ["auroc"])
    trainer.model = nn.Sequential(trainer.model, nn.LogSoftmax(1))
    p = outputs_of(trainer).exp().numpy()
    expected = sk.roc_auc_score(targets.numpy(), p, multi_class="ovr")
    assert trainer.evaluate()["auroc"] == pytest.approx(expected, rel=CURVES)


def test_the_confusion_matrix_is_counted_by_class_and_prediction() -> None:
    targets = labels(ignored=True)
    trainer = trainer_of("cross_entropy", 3, targets, ["confusion_matrix"], microbatch_size=7)
    found, counted = trainer.evaluate(), targets != -100
    matrix = sk.confusion_matrix(targets[counted], outputs_of(trainer)[counted].argmax(1))
    for i in range(3):
        for j in range(3):
            assert found[f"confusion_matrix_{i}_as_{j}"] == matrix[i, j]


NAMES = [*BY_CLASS, *BY_SCORE]


@pytest.mark.parametrize("loss", ["bce_with_logits", "bce"])
def test_of_one_logit_they_are_of_class_1(loss: str) -> None:
    targets = (draw(N, 1, seed=3) > 0.4).double()
    trainer = trainer_of(loss, 1, targets, [*NAMES, "confusion_matrix"], microbatch_size=5)
    if loss == "bce":
        trainer.model = nn.Sequential(trainer.model, nn.Sigmoid())
    found, scores = trainer.evaluate(), outputs_of(trainer)[:, 0].numpy()
    right, y = scores > (0.5 if loss == "bce" else 0.0), targets[:, 0].numpy()
    for name, by_sklearn in BY_CLASS.items():
        assert found[name] == pytest.approx(by_sklearn(y, right), rel=1e-10)
    assert found["auroc"] == pytest.approx(sk.roc_auc_score(y, scores), rel=CURVES)
    expected = sk.average_precision_score(y, scores)
    assert found["average_precision"] == pytest.approx(expected, rel=CURVES)
    assert found["confusion_matrix_1_as_0"] == sk.confusion_matrix(y, right)[1, 0]


def test_several_labels_are_averaged_over_labels() -> None:
    targets = (draw(N, 3, seed=3) > 0.2).double()
    trainer = trainer_of("bce_with_logits", 3, targets, [*BY_CLASS, "auroc"], microbatch_size=5)
    found, outputs = trainer.evaluate(), outputs_of(trainer).numpy()
    for name, by_sklearn in BY_CLASS.items():
        expected = by_sklearn(targets.numpy(), outputs > 0, average="macro")
        assert found[name] == pytest.approx(expected, rel=1e-10)
    expected = sk.roc_auc_score(targets.numpy(), outputs, average="macro")
    assert found["auroc"] == pytest.approx(expected, rel=CURVES)
    trainer.metrics = {"confusion_matrix": made("confusion_matrix")}
    with pytest.raises(ConfigError, match=r"^metrics: confusion_matrix is not defined for several"):
        trainer.evaluate()


class Tagger(nn.Module):
    """Scores [B, 3, T] of each of T = 2 places."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 6).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).view(-1, 3, 2)


def test_sequences_count_place_by_place() -> None:
    targets = torch.stack([labels(ignored=True), labels().flip(0)], dim=1)
    model = Tagger()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = BatchLoader((draw(N, 4), targets))
    trainer = Trainer(
        model, nn.CrossEntropyLoss(), optimizer, loader, device="cpu", metrics=["f1"],
        microbatch_size=5,
    )  # fmt: skip
    predicted, counted = outputs_of(trainer).argmax(1), targets != -100
    expected = sk.f1_score(targets[counted], predicted[counted], average="macro")
    assert trainer.evaluate()["f1"] == pytest.approx(expected, rel=1e-10)


# ── where ───────────────────────────────────────────────────────────────────────────────────


def test_two_ranks_count_what_one_does() -> None:
    def make() -> Trainer:
        metrics = {"f1": made("f1", per_class=True), "auroc": made("auroc")}
        return trainer_of("cross_entropy", 3, labels(ignored=True), metrics, microbatch_size=7)

    expected, trainers = make().evaluate(), [make() for _ in range(2)]

    def work(world: Any) -> dict[str, float]:
        trainer = trainers[world.rank]
        trainer.world = trainer.microbatches.world = world
        return trainer.evaluate()

    for found in on_threads(2, work):
        assert found == pytest.approx(expected, rel=1e-12)


def test_they_stand_in_the_history_and_are_monitored_upwards() -> None:
    validation = BatchLoader((draw(N, 4, seed=5), labels()))
    trainer = trainer_of(
        "cross_entropy", 3, labels(), ["f1", "confusion_matrix"], validation=validation
    )
    trainer.loader = MiniBatchLoader((draw(N, 4), labels()), 8)
    history = trainer.fit(2)
    assert len(history.val_f1) == len(history["val_confusion_matrix_0_as_0"]) == 2
    for name in ("val_r2", "val_f1", "val_auroc", "val_average_precision", "val_recall_averaged"):
        assert best_of(name) == "max"
    assert best_of("val_rmse") == best_of("val_loss") == "min"


def test_a_trainer_with_them_can_be_copied() -> None:
    trainer = trainer_of("cross_entropy", 3, labels(), [*NAMES, "confusion_matrix"])
    expected = trainer.evaluate()
    assert copy.deepcopy(trainer).evaluate() == expected
    assert pickle.loads(pickle.dumps(trainer)).evaluate() == expected


# ── what is refused ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", [*NAMES, "r2", "rmse", "confusion_matrix"])
def test_a_missing_package_is_named_with_its_install_line(name, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    said = (
        rf"^metrics: {name} needs torchmetrics, which is not installed; "
        r"pip install 'gdtrain\[metrics\]'$"
    )
    loss = "mse" if name in ("r2", "rmse") else "cross_entropy"
    with pytest.raises(MissingPackageError, match=said):
        trainer_of(loss, 3, labels(), [name])


def test_a_metric_that_does_not_go_with_the_loss_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^metrics: f1 is not defined for mse$"):
        trainer_of("mse", 1, draw(N, 1), ["f1"])
    with pytest.raises(ConfigError, match=r"^metrics: r2 needs a loss of mse, "):
        trainer_of("cross_entropy", 3, labels(), ["r2"])
    trainer = trainer_of(lambda o, t: o.mean(), 2, draw(N, 1), ["rmse"])
    with pytest.raises(DataError, match=r"^metrics: outputs \[61, 2\] and targets \[61, 1\] must"):
        trainer.evaluate()
    trainer = trainer_of(lambda o, t: o.mean(), 2, draw(N, 1), ["f1"])
    with pytest.raises(
        DataError, match=r"^metrics: outputs \[61, 2\] and targets \[61, 1\] do not"
    ):
        trainer.evaluate()
