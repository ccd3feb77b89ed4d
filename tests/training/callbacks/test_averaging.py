"""Averaged weights: against their closed form, torch's own, and the mean of what was seen."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.faults.interruptions import StopAfter
from helpers.midrun import add_group, freeze, unfreeze
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, update_bn

from gdtrain import (
    Averaging,
    BatchLoader,
    Callback,
    MiniBatchLoader,
    PhasedLoader,
    SampleLoader,
    Trainer,
    load_run,
)
from gdtrain.checkpoint.checkpoints import CheckpointStore
from gdtrain.checkpoint.expected_tensors import tensor_check
from gdtrain.cli.main import main
from gdtrain.data.orders.order import generator
from gdtrain.errors import CheckpointError, ConfigError, ModelError
from gdtrain.training.engines.obstacles import is_installed
from gdtrain.training.state.random_generators import RngState

draw = torch.Generator().manual_seed(0)
N = 24
X = torch.randn(N, 3, generator=draw, dtype=torch.float64)
Y = torch.randn(N, 1, generator=draw, dtype=torch.float64)
Array = np.ndarray[Any, np.dtype[np.float64]]


class Seen(Callback):
    """The weights after every update, and at which epoch, from 1."""

    every_n_steps = 1

    def __init__(self) -> None:
        self.weights: list[Array] = []
        self.epochs: list[int] = []

    def on_safe_point(self, trainer: Trainer) -> None:
        flat = [p.detach().flatten() for p in trainer.model.parameters()]
        self.weights.append(torch.cat(flat).double().numpy().copy())
        self.epochs.append(trainer.progress.epoch + 1)


def build(*callbacks: Callback, norm: bool = False, **options: Any) -> Trainer:
    torch.manual_seed(3)
    layers = [nn.Linear(3, 4), *([nn.BatchNorm1d(4)] if norm else []), nn.Tanh(), nn.Linear(4, 1)]
    model = nn.Sequential(*layers).to(options.pop("dtype", torch.float64))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.5)
    loader = options.pop("loader", MiniBatchLoader((X, Y), 5, seed=1))
    given: dict[str, Any] = {"device": "cpu", "callbacks": callbacks, "engine": "eager"}
    return Trainer(model, nn.MSELoss(), optimizer, loader, **(given | options))


def averaged(averaging: Averaging, trainer: Trainer) -> Array:
    names = [name for name, _ in trainer.model.named_parameters()]
    weights = averaging.weights(trainer)
    return torch.cat([weights[name].flatten() for name in names]).numpy()


@pytest.mark.parametrize(
    ("options", "counts"),
    [
        ({}, lambda step, epoch: True),
        ({"every_n_steps": 3}, lambda step, epoch: step % 3 == 0),
        ({"start_epoch": 3}, lambda step, epoch: epoch >= 3),
        ({"start_step": 8, "every_n_steps": 2}, lambda step, epoch: step >= 8 and step % 2 == 0),
        ({"start_epoch": 2, "every_n_steps": 4}, lambda step, epoch: epoch > 1 and step % 4 == 0),
    ],
)
def test_it_is_the_mean_of_the_weights_that_count(options: Any, counts: Any) -> None:
    seen, averaging = Seen(), Averaging(**options)
    trainer = build(seen, averaging)
    trainer.fit(4)
    chosen = [
        weights
        for step, (weights, epoch) in enumerate(zip(seen.weights, seen.epochs, strict=True), 1)
        if counts(step, epoch)
    ]
    assert averaging.count == len(chosen) > 1
    assert np.abs(averaged(averaging, trainer) - np.mean(chosen, axis=0)).max() < 1e-14


def test_with_a_decay_it_is_the_exponential_average() -> None:
    seen, averaging = Seen(), Averaging(decay=0.9)
    trainer = build(seen, averaging)
    trainer.fit(4)
    mean = seen.weights[0]
    for weights in seen.weights[1:]:
        mean = 0.9 * mean + 0.1 * weights
    assert np.abs(averaged(averaging, trainer) - mean).max() < 1e-14


def test_of_float32_weights_the_mean_is_kept_in_float64() -> None:
    seen, averaging = Seen(), Averaging()
    trainer = build(seen, averaging, dtype=torch.float32)
    trainer.fit(100)
    exact = np.mean(seen.weights, axis=0)
    assert np.array_equal(averaged(averaging, trainer), exact.astype(np.float32))


@pytest.mark.long
@pytest.mark.skipif(not is_installed(), reason="engine scan needs jax")
def test_the_scan_engine_stops_for_it_and_no_more_than_it_must() -> None:
    found = []
    for engine in ("eager", "scan"):
        averaging = Averaging(start_epoch=2, every_n_steps=3)
        trainer = build(averaging, engine=engine)
        trainer.fit(5)
        assert trainer.engine.name == engine
        found.append((averaging.count, averaged(averaging, trainer)))
    assert found[0][0] == found[1][0]
    assert np.abs(found[0][1] - found[1][1]).max() < 1e-13


def test_blocks_end_at_the_cadence_only_once_averaging_has_begun() -> None:
    ends: list[int] = []

    class Ends(Callback):
        def on_safe_point(self, trainer: Trainer) -> None:
            ends.append(trainer.progress.step)

    averaging = Averaging(start_step=22, every_n_steps=4)
    trainer = build(averaging, Ends(), loader=SampleLoader((X, Y), seed=1))
    trainer.block_length._steps = 64
    trainer.fit(2)
    assert ends == [24, 28, 32, 36, 40, 44, 48]  # 24 is the first that counts, and an epoch's end
    assert averaging.count == 7

    ends.clear()
    averaging = Averaging(start_step=27, every_n_steps=10)
    trainer = build(averaging, Ends(), loader=SampleLoader((X, Y), seed=1))
    trainer.block_length._steps = 64
    trainer.fit(2)
    assert ends == [24, 30, 40, 48]
    assert averaging.count == 2


def test_training_goes_on_as_if_it_was_not_there() -> None:
    validation = BatchLoader((X[:5], Y[:5]))
    with_it = build(Averaging(), norm=True, validation=validation)
    without = build(norm=True, validation=validation)
    with_it.fit(5)
    without.fit(5)
    for name, tensor in without.model.state_dict().items():
        assert torch.equal(tensor, with_it.model.state_dict()[name])
    assert with_it.history.val_loss == without.history.val_loss
    assert with_it.history.val_loss_averaged != without.history.val_loss


# ── the known rate ──────────────────────────────────────────────────────────────────────────

SAMPLES, WIDTH = 1000, 1000


class Cloud(nn.Module):
    """θ [WIDTH]; with the loss below, each coordinate is a problem ½ (θ - x_i)² of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.ones(WIDTH, dtype=torch.float64))


class HalfSquares(Trainer):
    def compute_loss(self, batch: Any) -> Tensor:
        return 0.5 * ((self.model.theta - batch.inputs) ** 2).sum(dim=1).mean()  # type: ignore[operator]


def cloud(seed: int, alpha: float, epochs: int) -> tuple[list[Array], list[Array], Array, Array]:
    """After each epoch θ̄ and θ, the data, and the draws of all epochs in their order."""
    x = torch.randn(
        SAMPLES, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    model, averaging = Cloud(), Averaging()
    loader = SampleLoader((x,), order="replacement", seed=seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=alpha)
    trainer = HalfSquares(
        model, None, optimizer, loader, device="cpu", callbacks=[averaging], engine="eager"
    )
    means, last = [], []
    for epoch in range(epochs):
        trainer.fit(epoch + 1)
        means.append(averaging.weights(trainer)["theta"].numpy())
        last.append(model.theta.detach().numpy().copy())
    plans = [loader.plan(epoch) for epoch in range(epochs)]
    draws = np.concatenate([plan.take(0, SAMPLES).numpy() for plan in plans])
    return means, last, x.numpy(), draws


def variance_of_the_mean(alpha: float, t: int) -> float:
    """Σ_k (1 - ρ^k)² / t², with ρ = 1 - α, in closed form by two geometric series.

    θ_t - θ* = ρ (θ_{t-1} - θ*) + α ξ_t with ξ_t = x_{i(t)} - θ* of variance σ² = 1. Summed up,
    ξ_s enters θ̄_t - θ* with the weight (α / t) (1 + ρ + … + ρ^{t-s}) = (1 - ρ^{t-s+1}) / t.
    """
    rho = 1 - alpha
    once = rho * (1 - rho**t) / alpha
    twice = rho**2 * (1 - rho ** (2 * t)) / (1 - rho**2)
    return (t - 2 * once + twice) / t**2


def test_path_by_path_the_mean_is_the_weighted_sum_of_the_noise() -> None:
    alpha = 0.1
    means, _, x, draws = cloud(0, alpha, 1)
    target, t, rho = x.mean(axis=0), SAMPLES, 1 - alpha
    noise = x[draws] - target
    weights = (1 - rho ** np.arange(t, 0, -1)) / t
    start = rho * (1 - rho**t) / (alpha * t) * (1 - target)
    assert np.abs(means[0] - target - start - weights @ noise).max() < 1e-12
    assert (weights**2).sum() == pytest.approx(variance_of_the_mean(alpha, t), rel=1e-12)


@pytest.mark.long
def test_averaged_sgd_goes_by_one_over_t_where_sgd_stalls() -> None:
    """Over 1,000 coordinates and 3 seeds: a standard error of 4 % for each number of updates.

    Of |Σ c_s ξ_s|² it is √(2 / 1000) for the angles between the ξ_s, as much for draws that come
    twice, and 1 / √3 of that for the seeds.
    """
    alpha, epochs = 0.1, 3
    errors, stalled = np.zeros(epochs), np.zeros(epochs)
    for seed in range(3):
        means, last, x, _ = cloud(seed, alpha, epochs)
        target, sigma = x.mean(axis=0), x.var(axis=0)
        errors += [((mean - target) ** 2 / sigma).mean() / 3 for mean in means]
        stalled += [((theta - target) ** 2 / sigma).mean() / 3 for theta in last]
    steps = SAMPLES * np.arange(1, epochs + 1)
    # θ starts 1 from 0, which is a standard deviation: the start is forgotten as 1 / t².
    start = np.array([((1 - alpha) / (alpha * t)) ** 2 for t in steps])
    expected = start + [variance_of_the_mean(alpha, t) for t in steps]
    assert errors == pytest.approx(expected, rel=0.16)
    assert errors * steps == pytest.approx(np.ones(epochs), abs=0.2)  # σ² / t
    assert stalled.mean() == pytest.approx(alpha / (2 - alpha), rel=0.1)
    assert (stalled / errors)[-1] > 100


# ── where the average is used ───────────────────────────────────────────────────────────────


def test_it_agrees_with_torch_in_weights_and_in_the_statistics_of_batch_norm() -> None:
    class Torchs(Callback):
        every_n_steps = 1

        def on_fit_start(self, trainer: Trainer) -> None:
            self.model = AveragedModel(trainer.model)

        def on_safe_point(self, trainer: Trainer) -> None:
            self.model.update_parameters(trainer.model)

    theirs, ours = Torchs(), Averaging()
    trainer = build(theirs, ours, norm=True, validation=BatchLoader((X[:7], Y[:7])))
    trainer.fit(6)
    update_bn([X], theirs.model)
    found = ours.weights(trainer)
    for name, tensor in theirs.model.module.state_dict().items():
        assert torch.allclose(found[name], tensor, rtol=0, atol=1e-12), name
    theirs.model.eval()
    with torch.no_grad():
        loss = float(nn.MSELoss()(theirs.model(X[:7]), Y[:7]))
    assert trainer.history.val_loss_averaged[-1] == pytest.approx(loss, abs=1e-12)
    fresh = build(norm=True)
    fresh.model.load_state_dict(found)
    assert fresh.evaluate(BatchLoader((X[:7], Y[:7])))["loss"] == pytest.approx(loss, abs=1e-12)


def test_batches_for_the_statistics_are_never_of_one_sample() -> None:
    averaging = Averaging()
    loader = MiniBatchLoader((X[:21], Y[:21]), 5, seed=1, drop_last=True)
    trainer = build(averaging, norm=True, loader=loader, microbatch_size=1, microbatch_allow=["1"])
    averaging.on_safe_point(trainer)  # of 21 samples, two at a time would leave one
    with averaging.applied(trainer):
        mean = trainer.model[1].running_mean.clone()  # type: ignore[index]
        inner = trainer.model[0](X[:21]).detach()  # type: ignore[index]
    assert torch.allclose(mean, inner.mean(dim=0), rtol=0, atol=0.05)


def test_applying_it_leaves_everything_as_it_was() -> None:
    averaging = Averaging()
    trainer = build(averaging, norm=True)
    with pytest.raises(ModelError, match="no weights have been averaged yet"):
        averaging.weights(trainer)
    trainer.fit(3)
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    gradients = [p.grad for p in trainer.model.parameters()]
    modes = [m.training for m in trainer.model.modules()]
    places = [p.data_ptr() for p in trainer.model.parameters()]
    rng = RngState.take(trainer.device)
    with averaging.applied(trainer):
        inside = trainer.predict(X)
        torch.rand(3)
    assert not torch.equal(inside, trainer.predict(X))
    assert all(torch.equal(v, before[k]) for k, v in trainer.model.state_dict().items())
    assert [p.grad for p in trainer.model.parameters()] == gradients
    assert [m.training for m in trainer.model.modules()] == modes
    assert [p.data_ptr() for p in trainer.model.parameters()] == places
    assert torch.equal(RngState.take(trainer.device).cpu, rng.cpu)


def test_interrupted_at_each_step_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    def loader() -> PhasedLoader:
        forms = [(2, MiniBatchLoader((X, Y), 9, seed=1)), (None, BatchLoader((X, Y)))]
        return PhasedLoader(forms)

    def make(last: int) -> Trainer:
        return build(
            Averaging(start_epoch=2, every_n_steps=2),
            StopAfter(last),
            loader=loader(),
            validation=BatchLoader((X[:5], Y[:5])),
        )

    whole = make(-1)
    whole.fit(6)
    expected = whole.callbacks[1].state_dict()
    for step in range(1, whole.progress.step):
        first, store = make(step), CheckpointStore(tmp_path)
        first.fit(6)
        store.save(step, first.state_dict())
        second = make(-1)
        second.load_state_dict(store.load_newest(tensor_check(second))[1])
        second.fit(6)
        found = second.callbacks[1].state_dict()
        assert found["count"] == expected["count"]
        assert torch.equal(found["mean"], expected["mean"])
        assert (
            second.history.epochs[-1]["val_loss_averaged"]
            == (whole.history.epochs[-1]["val_loss_averaged"])
        )


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("count", -1),
        ("count", 0),
        ("mean", None),
        ("mean", torch.zeros(3, dtype=torch.float64)),
        ("mean", torch.full((21,), torch.nan, dtype=torch.float64)),
        ("names", ["other"]),
    ],
)
def test_a_state_of_another_model_or_a_hostile_one_is_refused(name: str, wrong: Any) -> None:
    trainer = build(Averaging())
    trainer.fit(1)
    state = trainer.state_dict()
    state["callbacks"]["Averaging"][name] = wrong

    def go_on() -> None:
        fresh = build(Averaging())
        fresh.load_state_dict(state)
        fresh.fit(2)

    with pytest.raises(CheckpointError, match="Averaging"):
        go_on()


def test_settings_that_can_not_be_are_named() -> None:
    for options, said in (
        ({"decay": 1.0}, "decay: must be > 0 and < 1, got 1.0"),
        ({"every_n_steps": 0}, "every_n_steps: must be >= 1, got 0"),
        ({"start_epoch": 2, "start_step": 3}, "start_step: can't be set together with start_epoch"),
        ({"start_epoch": 1.5}, "start_epoch: must be a whole number, got 1.5"),
        ({"start_epoch": 0}, "start_epoch: must be >= 1, got 0"),
        ({"start_step": 0}, "start_step: must be >= 1, got 0"),
    ):
        with pytest.raises(ConfigError) as error:
            Averaging(**options)
        assert str(error.value) == said


# ── the command line ────────────────────────────────────────────────────────────────────────

CONFIG: dict[str, Any] = {
    "data": {"source": "two_moons", "num_samples": 60, "validation_fraction": 0.3},
    "model": {"name": "mlp", "hidden": [5], "batch_norm": True},
    "loss": "cross_entropy",
    "loader": {"name": "minibatch", "batch_size": 8, "drop_last": True},
    "optimizer": {"lr": 0.1},
    "averaging": {"start_epoch": 2},
    "epochs": 4,
    "log": {"picture": False},
    "device": "cpu",
}


def test_the_command_evaluates_writes_and_resumes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text(json.dumps(CONFIG))
    assert main(["--config", "a.yaml", "--output-dir", "whole"]) == 0
    assert "val_accuracy_averaged" in (told := capsys.readouterr().err)
    assert "%" in told.rpartition("val_accuracy_averaged")[2]
    for epochs in (1, 3, 4):
        more = ["--resume"] if epochs > 1 else []
        run = ["--config", "a.yaml", f"epochs={epochs}", "--output-dir", "parts", *more]
        assert main(run) == 0
        note = "note: averaging never begins: training ends with update 5\n"
        assert (note in capsys.readouterr().err) == (epochs == 1)
        assert Path("parts", "averaged.safetensors").exists() == (epochs > 1)
    files = [Path(run, "averaged.safetensors").read_bytes() for run in ("whole", "parts")]
    assert files[0] == files[1]
    lines = [json.loads(line) for line in Path("whole", "metrics.jsonl").read_text().splitlines()]
    epochs_ = [line for line in lines if line["kind"] == "epoch"]
    assert ["val_loss_averaged" in line for line in epochs_] == [False, True, True, True]
    summary = json.loads(Path("whole", "summary.json").read_text())["validation"]
    assert summary["accuracy_averaged"] == epochs_[-1]["val_accuracy_averaged"]
    last, mean = load_run("whole"), load_run("whole", averaged=True)
    kept = load_file("whole/averaged.safetensors")
    assert all(torch.equal(v, kept[k]) for k, v in mean.model.state_dict().items())
    assert not torch.equal(last.predict(X[:, :2]), mean.predict(X[:, :2]))


def test_an_average_that_never_begins_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Of 42 training samples in batches of 8, 5 updates an epoch, 20 in all."""
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text(json.dumps(CONFIG))
    for settings, begins in (
        ("{start_step: 20}", True),
        ("{start_step: 21}", False),
        ("{every_n_steps: 20}", True),
        ("{every_n_steps: 21}", False),
        ("{start_epoch: 4, every_n_steps: 16}", True),
        ("{start_epoch: 4, every_n_steps: 15}", False),
    ):
        assert main(["--config", "a.yaml", f"averaging={settings}", "--dry-run"]) == 0
        note = "note: averaging never begins: training ends with update 20\n"
        assert (note in capsys.readouterr().err) != begins


def test_early_stopping_and_the_best_checkpoint_may_go_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    by_it = {
        "early_stopping": {"monitor": "val_accuracy_averaged", "patience": 1},
        "checkpoint": {"keep_best": "val_loss_averaged"},
    }
    Path("a.yaml").write_text(json.dumps(CONFIG | by_it | {"epochs": 60}))
    assert main(["--config", "a.yaml", "--output-dir", "run"]) == 0
    assert "val_accuracy_averaged did not improve for 1 epoch" in capsys.readouterr().err
    assert main(["--config", "a.yaml", "averaging=null"]) == 2
    assert "must be one of train_loss, val_loss, val_accuracy; got" in capsys.readouterr().err


def test_a_stream_gives_batch_norm_no_second_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = "".join(f"{i},{i % 7},{i % 2}\n" for i in range(64))
    Path("rows.csv").write_text("a,b,c\n" + rows)
    data = {"source": "stream", "format": "csv", "path": "rows.csv", "target": "c"}
    stream = {"data": data | {"num_classes": 2}, "epochs": 1, "averaging": {"decay": 0.9}}
    stream["optimizer"] = {"lr": 0.001}
    Path("a.yaml").write_text(json.dumps(CONFIG | stream))
    assert main(["--config", "a.yaml"]) == 2
    assert "averaging: needs a pass over the training data" in capsys.readouterr().err
    plain = ["model.batch_norm=false", "--output-dir", "run"]
    assert main(["--config", "a.yaml", *plain]) == 0
    assert Path("run/averaged.safetensors").exists()
    assert main(["--config", "a.yaml", "model.batch_norm=false", "averaging.start_epoch=2"]) == 2
    said = "averaging: start_epoch has no effect on a stream, which is one epoch"
    assert said in capsys.readouterr().err


# ── what changes in mid-run ─────────────────────────────────────────────────────────────────────


class Acts(Callback):
    """Does something to the model after some updates, and notes all weights after each."""

    every_n_steps = 1

    def __init__(self, **acts: Callable[[Trainer], Any]) -> None:
        super().__init__()
        self.acts = {int(step.removeprefix("after_")): act for step, act in acts.items()}
        self.seen: list[dict[str, Tensor]] = []

    def on_safe_point(self, trainer: Trainer) -> None:
        named = trainer.model.named_parameters()
        self.seen.append({n: p.detach().double().clone() for n, p in named})
        if trainer.progress.step in self.acts:
            self.acts[trainer.progress.step](trainer)

    def means(self) -> dict[str, Tensor]:
        """Of each parameter over the updates after which the model had it."""
        names = self.seen[-1]
        found = {n: [w[n] for w in self.seen if n in w] for n in names}
        return {n: torch.stack(values).mean(0) for n, values in found.items()}


class Grows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        inner = torch.tanh(self.first(x))
        return self.last(self.middle(inner) if hasattr(self, "middle") else inner)


def halve(trainer: Trainer) -> None:
    with torch.no_grad():
        trainer.model.first.weight.data = trainer.model.first.weight.data / 2
        trainer.model.first.bias.data.mul_(0.5)


def grow(trainer: Trainer) -> None:
    torch.manual_seed(5)
    trainer.model.middle = nn.Linear(4, 4).to(trainer.dtype)
    trainer.optimizer.add_param_group({"params": trainer.model.middle.parameters()})


def replace(trainer: Trainer) -> None:
    """Another layer of the same shape, which the optimizer moves in the place of the first."""
    trainer.model.last = nn.Linear(4, 1).to(trainer.dtype)
    groups = trainer.optimizer.param_groups
    kept = [p for p in groups[0]["params"] if p.shape not in ((1, 4), (1,))]
    groups[0]["params"] = [*kept, *trainer.model.last.parameters()]


@pytest.mark.parametrize(
    ("frozen", "acts"),
    [
        (False, {"after_3": freeze}),
        (True, {"after_3": unfreeze}),
        (True, {"after_2": add_group, "after_6": halve}),
        (False, {"after_4": halve}),
        (True, {"after_4": halve}),
        (False, {"after_3": grow}),
        (False, {"after_3": replace}),
    ],
    ids=["freeze", "unfreeze", "add a group", "bind", "bind frozen", "grow", "replace"],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_it_is_the_mean_whatever_is_done_to_the_model(frozen: bool, acts: Any, dtype: Any) -> None:
    torch.manual_seed(3)
    model, averaging, seen = Grows().to(dtype), Averaging(), Acts(**acts)
    model.first.requires_grad_(not frozen)
    held = model.last.parameters() if add_group in acts.values() else model.parameters()
    optimizer = torch.optim.SGD(held, lr=0.05)
    loader = MiniBatchLoader((X, Y), 5, seed=1)
    trainer = Trainer(
        model, nn.MSELoss(), optimizer, loader, device="cpu", callbacks=[averaging, seen]
    )
    trainer.fit(2)
    found = averaging.weights(trainer)
    for name, mean in seen.means().items():
        assert torch.allclose(found[name], mean.to(dtype), rtol=0, atol=1e-7), name
    # … and an interrupted run has the same: what came later counts from then on
    fresh, state = Averaging(), averaging.state_dict()
    fresh.load_state_dict(state)
    for name, mean in fresh.weights(trainer).items():
        assert torch.equal(mean, found[name])
    averaging.on_safe_point(trainer)
    fresh.on_safe_point(trainer)
    assert torch.equal(fresh.state_dict()["mean"], averaging.state_dict()["mean"])


def test_an_average_that_is_added_in_mid_run_waits_for_its_first_epoch() -> None:
    averaging = Averaging(start_epoch=3)
    seen = Acts(after_2=lambda trainer: trainer.callbacks.append(averaging))
    torch.manual_seed(3)
    model = nn.Linear(3, 1).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    trainer = Trainer(model, nn.MSELoss(), optimizer, BatchLoader((X, Y)), device="cpu",
                      callbacks=[seen])  # fmt: skip
    trainer.fit(4)
    assert averaging.count == 2
    expected = (seen.seen[2]["weight"] + seen.seen[3]["weight"]) / 2
    assert torch.allclose(averaging.weights(trainer)["weight"], expected, rtol=0, atol=1e-15)


# ── running statistics ──────────────────────────────────────────────────────────────────────────


class Norms(nn.Module):
    """Norms that track statistics, one that does not, and one that is frozen in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.tracked = nn.BatchNorm1d(4)
        self.untracked = nn.BatchNorm1d(4, track_running_stats=False)
        self.instance = nn.InstanceNorm1d(2, track_running_stats=True)
        self.frozen = nn.BatchNorm1d(4)
        self.last = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.frozen(self.untracked(self.tracked(self.first(x))))
        return self.last(self.instance(x.view(-1, 2, 2)).flatten(1))


@pytest.mark.parametrize("mode", ["as it trained", "all in eval mode"])
@pytest.mark.parametrize("size", [None, 12])
def test_statistics_are_estimated_of_layers_that_have_them_from_their_batches(
    mode: str, size: int | None
) -> None:
    torch.manual_seed(3)
    model, averaging = Norms().double(), Averaging()
    model.frozen.eval()
    model.frozen.running_mean.fill_(5.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    trainer = Trainer(
        model, nn.MSELoss(), optimizer, BatchLoader((X, Y)), device="cpu", callbacks=[averaging],
    )  # fmt: skip
    trainer.fit(3)
    trainer.microbatches.size = size  # what an estimate reads at once
    if mode == "all in eval mode":
        model.eval()
    found = averaging.weights(trainer)
    assert torch.equal(found["frozen.running_mean"], torch.full((4,), 5.0).double())
    assert torch.equal(found["frozen.running_var"], model.frozen.running_var)
    assert "untracked.running_mean" not in found
    with torch.no_grad():
        inner = X @ found["first.weight"].T + found["first.bias"]
    order = torch.randperm(N, generator=generator(0))
    parts = inner[order].split(size or N)
    mean = torch.stack([part.mean(0) for part in parts]).mean(0)
    variance = torch.stack([part.var(0) for part in parts]).mean(0)
    assert torch.allclose(found["tracked.running_mean"], mean, rtol=0, atol=1e-12)
    assert torch.allclose(found["tracked.running_var"], variance, rtol=0, atol=1e-12)
    assert not torch.allclose(found["instance.running_mean"], model.instance.running_mean)


def test_a_norm_of_the_loss_has_its_statistics_estimated_too() -> None:
    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(1)

        def forward(self, output: Tensor, targets: Tensor) -> Tensor:
            return (self.norm(output) - targets).square().mean()

    torch.manual_seed(3)
    model, loss, averaging = nn.Linear(3, 1).double(), Loss(), Averaging()
    optimizer = torch.optim.SGD([*model.parameters(), *loss.parameters()], lr=0.05)
    loader = BatchLoader((X, Y))
    trainer = Trainer(model, loss, optimizer, loader, device="cpu", callbacks=[averaging])
    trainer.fit(3)
    before = loss.norm.running_mean.clone()
    with averaging.applied(trainer):
        output = model(X).detach()
        assert torch.allclose(loss.norm.running_mean, output.mean(0), rtol=0, atol=1e-12)
        assert loss.norm.training
    assert torch.equal(loss.norm.running_mean, before)
