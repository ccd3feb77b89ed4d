"""evaluate and predict: exact means over the whole set, and no side effects."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from gdtrain import BatchLoader, MiniBatchLoader, SampleLoader, Trainer
from gdtrain.training.evaluating.metrics import accuracy, mean_absolute_error, probability_accuracy

draw = torch.Generator().manual_seed(0)
# 2,500 samples are evaluated in three parts of unequal size.
X = torch.randn(2500, 3, generator=draw, dtype=torch.float64)
LABELS = torch.randint(4, (2500,), generator=draw)


def make_trainer(loss=None, targets=LABELS, outputs=4, trainer_type=Trainer, **options) -> Trainer:
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Linear(3, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, outputs)
    ).double()
    return trainer_type(
        model,
        loss or nn.CrossEntropyLoss(),
        torch.optim.SGD(model.parameters(), lr=0.1),
        MiniBatchLoader((X, targets), 100, order="replacement", drop_last=True),
        device="cpu",
        **options,
    )


WEIGHTS = torch.tensor([0.1, 1.0, 3.0, 0.0], dtype=torch.float64)
IGNORING = torch.where(torch.arange(2500) < 2100, LABELS, -100)
LOSSES = [
    (nn.CrossEntropyLoss(), LABELS),
    (nn.CrossEntropyLoss(weight=WEIGHTS), LABELS),
    (nn.CrossEntropyLoss(weight=WEIGHTS, label_smoothing=0.2), LABELS),
    (nn.CrossEntropyLoss(), IGNORING),
    (nn.CrossEntropyLoss(weight=WEIGHTS, ignore_index=2), LABELS),
    (nn.CrossEntropyLoss(reduction="sum"), LABELS),
    (nn.CrossEntropyLoss(weight=WEIGHTS), nn.functional.one_hot(LABELS).double()),
    (nn.MultiMarginLoss(), LABELS),
    (nn.MSELoss(), nn.functional.one_hot(LABELS).double()),
    (nn.KLDivLoss(reduction="batchmean"), nn.functional.one_hot(LABELS).double()),
]


@pytest.mark.parametrize(("loss", "targets"), LOSSES, ids=lambda v: repr(v)[:40])
def test_the_loss_is_that_of_one_pass_over_everything(loss, targets) -> None:
    trainer = make_trainer(loss, targets)
    trainer.model.eval()
    with torch.no_grad():
        expected = loss(trainer.model(X), targets).item()
    trainer.model.train()
    assert trainer.evaluate()["loss"] == pytest.approx(expected, rel=1e-12)


def test_metrics_are_means_over_the_samples_of_the_loader_that_is_given() -> None:
    trainer = make_trainer(metrics={"accuracy": accuracy})
    trainer.model.eval()
    with torch.no_grad():
        right = (trainer.model(X[:1100]).argmax(1) == LABELS[:1100]).double().mean().item()
    for loader in (
        BatchLoader((X[:1100], LABELS[:1100])),
        SampleLoader((X[:1100], LABELS[:1100])),
        MiniBatchLoader((X[:1100], LABELS[:1100]), 64, order="shuffle_once", drop_last=True),
    ):
        assert trainer.evaluate(loader)["accuracy"] == pytest.approx(right, rel=1e-14)


def test_accuracy_and_errors_by_hand() -> None:
    scores = torch.tensor([[2.0, 1.0], [0.0, 3.0], [5.0, 4.0]])
    assert accuracy(scores, torch.tensor([0, 1, 1])).item() == pytest.approx(2 / 3)
    logits = torch.tensor([[0.3], [-2.0], [4.0], [-0.1]])
    truth = torch.tensor([[1.0], [0.0], [0.0], [1.0]])
    assert accuracy(logits, truth).item() == 0.5
    assert probability_accuracy(torch.tensor([[0.6], [0.2]]), torch.tensor([[1.0], [1.0]])) == 0.5
    assert mean_absolute_error(torch.tensor([1.0, 4.0]), torch.tensor([0.0, 6.0])) == 1.5


def state_of(trainer: Trainer) -> list:
    model = trainer.model
    return [
        [module.training for module in model.modules()],
        [buffer.clone() for buffer in model.buffers()],
        [p.grad for p in model.parameters()],
        [p.grad.clone() for p in model.parameters()],
        torch.get_rng_state(),
        random.getstate(),
        repr(np.random.get_state()),
    ]


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, list):
        return all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


class Intrusive(Trainer):
    """A loss that draws numbers, moves buffers and leaves gradients while it is evaluated."""

    def compute_loss(self, batch):
        random.random()
        np.random.rand()
        torch.rand(1)
        self.model[1].running_mean += 1
        self.model[1].train()
        with torch.enable_grad():
            loss = self.loss(self.model(batch.inputs), batch.targets)
            loss.backward()
        return loss.detach()


@pytest.mark.parametrize("trainer_type", [Trainer, Intrusive])
@pytest.mark.parametrize("look", ["evaluate", "predict"])
def test_nothing_that_training_depends_on_is_changed(trainer_type, look) -> None:
    trainer = make_trainer(trainer_type=trainer_type, metrics={"accuracy": accuracy})
    trainer.model[3].eval()
    trainer.loss(trainer.model(X), LABELS).backward()
    before = state_of(trainer)
    identities = [id(p.grad) for p in trainer.model.parameters()]
    buffers = [id(b) for b in trainer.model.buffers()]
    trainer.evaluate() if look == "evaluate" else trainer.predict(X)
    assert same(state_of(trainer), before)
    assert [id(p.grad) for p in trainer.model.parameters()] == identities
    assert [id(b) for b in trainer.model.buffers()] == buffers


def test_an_evaluation_that_fails_leaves_nothing_behind_either() -> None:
    trainer = make_trainer(metrics={"broken": lambda output, targets: 1 / 0})
    trainer.loss(trainer.model(X), LABELS).backward()
    before = state_of(trainer)
    with pytest.raises(ZeroDivisionError):
        trainer.evaluate()
    assert same(state_of(trainer), before)


def test_training_goes_on_to_the_same_bits_with_and_without_looks() -> None:
    plain, watched = make_trainer(), make_trainer(validation=BatchLoader((X, LABELS)))
    torch.manual_seed(5)
    plain.fit(2)
    torch.manual_seed(5)
    watched.fit(2)
    mine, theirs = plain.model.state_dict(), watched.model.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_predict_gives_the_outputs_of_eval_mode_for_tensors_and_arrays() -> None:
    trainer = make_trainer()
    trainer.model.eval()
    with torch.no_grad():
        expected = trainer.model(X)
    trainer.model.train()
    assert torch.allclose(trainer.predict(X), expected, rtol=0, atol=1e-14)
    assert torch.equal(trainer.predict(X.numpy()), trainer.predict(X))
    assert trainer.predict(X[:1].float()).dtype == torch.float64
    assert trainer.model.training


def test_models_with_several_inputs_get_them_as_arguments() -> None:
    class TwoInputs(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 1), nn.Linear(2, 1)

        def forward(self, x, z):
            return self.a(x) - self.b(z)

    torch.manual_seed(0)
    model = TwoInputs()
    x, z, y = X[:7].float(), X[7:14, :2].float(), X[14:21, :1].float()
    trainer = Trainer(
        model,
        nn.MSELoss(),
        torch.optim.SGD(model.parameters(), lr=0.1),
        MiniBatchLoader((x, z, y), 3),
        device="cpu",
    )
    trainer.fit(2)
    with torch.no_grad():
        expected = model(x, z)
    assert torch.allclose(trainer.predict((x, z)), expected)
    assert trainer.evaluate()["loss"] == pytest.approx(
        nn.functional.mse_loss(expected, y).item(), rel=1e-6
    )
