"""SVRG and SAGA: against their equations written in numpy, to the minimum, and through a kill."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.faults.interruptions import Injected, StopAfter
from helpers.ranks import on_ranks
from torch import Tensor, nn

from gdtrain import (
    SAGA,
    SVRG,
    BatchLoader,
    Callback,
    MiniBatchLoader,
    PhasedLoader,
    SampleLoader,
    StepLosses,
    Trainer,
)
from gdtrain.checkpoint import expected_tensors as expected
from gdtrain.checkpoint.checkpoints import CheckpointStore
from gdtrain.checkpoint.expected_tensors import tensor_check
from gdtrain.cli.main import main
from gdtrain.config.load import parse_config
from gdtrain.data.loaders.loader import Loader
from gdtrain.errors import CheckpointError, ConfigError, ModelError, NonFiniteError
from gdtrain.training.callbacks.prequential import Prequential
from gdtrain.training.gradients.parameter_vector import ParameterVector

draw = torch.Generator().manual_seed(0)
N, D = 7, 3
X = torch.randn(N, D, generator=draw, dtype=torch.float64)
Y = torch.randn(N, 1, generator=draw, dtype=torch.float64)
LR, MOMENTUM, DECAY = 0.03, 0.4, 0.1
Array = np.ndarray[Any, np.dtype[np.float64]]
LOADERS: dict[str, Callable[[], Loader]] = {
    "sample": lambda: SampleLoader((X, Y), seed=2),
    "minibatch": lambda: MiniBatchLoader((X, Y), 3, seed=2),  # 3, 3 and 1
    "with repeats": lambda: MiniBatchLoader((X, Y), 3, order="replacement", seed=5),
    "phases": lambda: PhasedLoader(
        [(2, SampleLoader((X, Y), seed=2)), (None, MiniBatchLoader((X, Y), 4, seed=2))]
    ),
}


def build(loader: Loader, *callbacks: Callback, **options: Any) -> Trainer:
    torch.manual_seed(3)
    model = nn.Linear(D, 1, bias=False).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=DECAY)
    given: dict[str, Any] = {"device": "cpu", "callbacks": callbacks} | options
    return Trainer(model, nn.MSELoss(), optimizer, loader, **given)


def weights(trainer: Trainer) -> Tensor:
    return next(trainer.model.parameters()).detach()[0]


def batches(loader: Loader, epochs: int) -> list[Array]:
    plans = [loader.plan(epoch) for epoch in range(epochs)]
    return [plan.batch_indices(k).numpy() for plan in plans for k in range(len(plan))]


def gradients(theta: Array, rows: Array) -> Array:
    """∇f_i = 2 (x_iᵀθ - y_i) x_i for f_i = (x_iᵀθ - y_i)², one a row."""
    x, y = X.numpy()[rows], Y.numpy()[rows, 0]
    return 2 * (x @ theta - y)[:, None] * x


def descend(theta: Array, velocity: Array | None, v: Array) -> tuple[Array, Array]:
    """torch.optim.SGD on the corrected gradient: weight decay, then momentum."""
    g = v + DECAY * theta
    velocity = g if velocity is None else MOMENTUM * velocity + g
    return theta - LR * velocity, velocity


def svrg_in_numpy(theta: Array, order: list[Array], every: int | None) -> Array:
    everything, velocity = np.arange(N), None
    anchor = mean = None
    updates = samples = 0
    for rows in order:
        due = samples >= 2 * N if every is None else updates >= every
        if anchor is None or due:
            anchor, updates, samples = theta, 0, 0
            mean = gradients(theta, everything).mean(axis=0)
        v = gradients(theta, rows).mean(0) - gradients(anchor, rows).mean(0) + mean
        theta, velocity = descend(theta, velocity, v)
        updates, samples = updates + 1, samples + len(rows)
    return theta


def saga_in_numpy(theta: Array, order: list[Array]) -> Array:
    table, velocity = gradients(theta, np.arange(N)), None
    for rows in order:
        fresh = gradients(theta, rows)
        v = (fresh - table[rows]).mean(axis=0) + table.mean(axis=0)
        table[rows] = fresh
        theta, velocity = descend(theta, velocity, v)
    return theta


@pytest.mark.few(5)
@pytest.mark.parametrize("form", LOADERS)
@pytest.mark.parametrize("every", [None, 1, 4])
def test_svrg_follows_its_equations(form: str, every: int | None) -> None:
    trainer = build(LOADERS[form](), SVRG(every))
    start = weights(trainer).numpy().copy()
    trainer.fit(5)
    found = svrg_in_numpy(start, batches(LOADERS[form](), 5), every)
    assert np.abs(weights(trainer).numpy() - found).max() < 1e-13


@pytest.mark.parametrize("form", LOADERS)
def test_saga_follows_its_equations(form: str) -> None:
    trainer = build(LOADERS[form](), SAGA())
    start = weights(trainer).numpy().copy()
    trainer.fit(5)
    found = saga_in_numpy(start, batches(LOADERS[form](), 5))
    assert np.abs(weights(trainer).numpy() - found).max() < 1e-13


def test_what_they_compute_besides_the_batches_is_counted() -> None:
    """SVRG on 7 samples, a snapshot every 5: 3 in 15 updates, and the 12 others twice."""
    svrg, saga = SVRG(5), SAGA()
    build(SampleLoader((X, Y), order=[0, 1, 2]), svrg).fit(5)
    assert svrg.extra_gradients == 3 * N + 12
    build(MiniBatchLoader((X, Y), 3), saga).fit(2)
    assert saga.extra_gradients == N + 2 * 6  # a batch of one needs no other gradient than its own


# ── to the minimum ──────────────────────────────────────────────────────────────────────────


def least_squares(n: int, d: int) -> tuple[Tensor, Tensor, Tensor]:
    """X [n, d], y with noise of variance 1, and the solution, by LAPACK."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=draw, dtype=torch.float64)
    slope = torch.randn(d, 1, generator=draw, dtype=torch.float64)
    y = x @ slope + torch.randn(n, 1, generator=draw, dtype=torch.float64)
    return x, y, torch.linalg.lstsq(x, y).solution


def gaps(n: int, d: int, size: int, lr: float, epochs: int, *callbacks: Callback) -> list[float]:
    """f(θ) - f(θ*) = (1/n) |X (θ - θ*)|² after each epoch of batches of ``size``."""
    x, y, solution = least_squares(n, d)
    torch.manual_seed(0)
    model = nn.Linear(d, 1, bias=False).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    loader = MiniBatchLoader((x, y), size, order="replacement", seed=1)
    trainer = Trainer(
        model, nn.MSELoss(), optimizer, loader, device="cpu", callbacks=callbacks, engine="eager"
    )
    found = []
    for epoch in range(epochs):
        trainer.fit(epoch + 1)
        error = x @ (model.weight.detach().T - solution)
        found.append(float((error**2).mean()))
    return found


@pytest.mark.long
def test_svrg_reaches_the_minimum_where_sgd_with_the_same_step_stalls() -> None:
    problem = (1000, 20, 20, 0.05, 30)
    with_svrg, without = gaps(*problem, SVRG()), gaps(*problem)
    assert with_svrg[-1] < 1e-12
    assert min(without) > 1e-4
    # A line in logarithms, as on strongly convex functions: the same factor for each snapshot.
    assert all(
        later < earlier / 2 for earlier, later in zip(with_svrg, with_svrg[2:], strict=False)
    )


@pytest.mark.long
def test_saga_reaches_it_too_one_sample_at_a_time() -> None:
    problem = (100, 5, 1, 0.03, 40)
    assert gaps(*problem, SAGA())[-1] < 1e-12
    assert min(gaps(*problem)) > 1e-4


# ── with the rest of a trainer ──────────────────────────────────────────────────────────────


@pytest.mark.few(1)
@pytest.mark.parametrize("make", [SVRG, SAGA, lambda: SVRG(3)], ids=["svrg", "saga", "svrg 3"])
def test_interrupted_at_each_step_it_ends_with_the_same_bits(
    make: Callable[[], Callback], tmp_path: Path
) -> None:
    whole = build(LOADERS["phases"](), make())
    whole.fit(4)
    for step in range(1, whole.progress.step):
        first, store = (
            build(LOADERS["phases"](), make(), StopAfter(step)),
            CheckpointStore(tmp_path),
        )
        first.fit(4)
        store.save(step, first.state_dict())
        second = build(LOADERS["phases"](), make(), StopAfter(-1))
        second.load_state_dict(store.load_newest(tensor_check(second))[1])
        second.fit(4)
        assert torch.equal(weights(second), weights(whole))
        assert second.callbacks[0].extra_gradients == whole.callbacks[0].extra_gradients


def test_going_back_to_a_state_before_the_first_update_forgets_what_was_kept() -> None:
    trainer = build(LOADERS["minibatch"](), SVRG(), SAGA())
    start = trainer.state_dict()
    trainer.fit(3)
    once = weights(trainer).clone()
    trainer.load_state_dict(start)
    trainer.fit(3)
    assert torch.equal(weights(trainer), once)


@pytest.mark.parametrize("make", [SVRG, SAGA])
@pytest.mark.parametrize("size", [1, 2, "auto"])
def test_microbatches_change_nothing(make: Callable[[], Callback], size: Any) -> None:
    whole, cut = (build(LOADERS["minibatch"](), make(), microbatch_size=s) for s in (None, size))
    whole.fit(4)
    cut.fit(4)
    assert torch.allclose(weights(whole), weights(cut), rtol=0, atol=1e-14)


def test_the_corrected_gradient_is_clipped_and_then_shown() -> None:
    class Norms(Callback):
        def __init__(self) -> None:
            self.seen: list[float] = []

        def on_before_update(self, trainer: Trainer) -> None:
            self.seen.append(float(next(trainer.model.parameters()).grad.norm()))

    norms = Norms()
    trainer = build(LOADERS["sample"](), SVRG(), norms, clip_grad_norm=0.01)
    rows = batches(LOADERS["sample"](), 1)
    theta = weights(trainer).numpy().copy()
    trainer.fit(1)
    full = np.linalg.norm(gradients(theta, np.arange(N)).mean(axis=0))
    assert full > 0.01
    assert norms.seen == pytest.approx([0.01] * len(rows), rel=1e-3)


@pytest.mark.parametrize("make", [SVRG, SAGA])
def test_metrics_of_the_updates_are_of_their_own_outputs(make: Callable[[], Callback]) -> None:
    def square(output: Tensor, targets: Tensor) -> Tensor:
        return ((output - targets) ** 2).mean()

    measured = Prequential(2 * N, {"square": square})
    build(LOADERS["minibatch"](), make(), measured).fit(3)
    report = measured.report()
    assert report["prequential_square"] == pytest.approx(report["prequential_loss"], rel=1e-14)


def test_with_adam_the_same_correction_is_taken() -> None:
    found = []
    for by_hand in (True, False):
        torch.manual_seed(3)
        model = nn.Linear(D, 1, bias=False).double()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        if not by_hand:
            loader = LOADERS["sample"]()
            Trainer(
                model, nn.MSELoss(), optimizer, loader, device="cpu", callbacks=[SVRG(100)]
            ).fit(3)
        else:
            anchor = model.weight.detach().numpy()[0].copy()
            mean = gradients(anchor, np.arange(N)).mean(axis=0)
            for rows in batches(LOADERS["sample"](), 3):
                own = gradients(model.weight.detach().numpy()[0], rows) - gradients(anchor, rows)
                model.weight.grad = torch.tensor(own.mean(axis=0, keepdims=True) + mean)
                optimizer.step()
        found.append(model.weight.detach().clone())
    assert torch.allclose(*found, rtol=0, atol=1e-13)


@pytest.mark.few(2)
@pytest.mark.parametrize("make", [SVRG, SAGA])
@pytest.mark.parametrize("where", ["output", "loss", "gradient"])
def test_an_update_that_is_not_finite_changes_nothing_that_is_kept(
    make: Callable[[], Any], where: str
) -> None:
    def run(at: int, last: int) -> Trainer:
        torch.manual_seed(3)
        model = nn.Linear(D, 1).double()
        optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)
        trainer = Injected(
            model,
            nn.MSELoss(),
            optimizer,
            SampleLoader((X, Y), seed=2),
            device="cpu",
            callbacks=[make(), StopAfter(last)],
        )
        trainer.where, trainer.at = where, at
        return trainer

    calls = run(0, 9)
    calls.fit(3)
    for at in (1, 2, N + 3, calls.calls):  # the first snapshot or table is among them
        broken = run(at, -1)
        with pytest.raises(NonFiniteError):
            broken.fit(3)
        sound = run(0, broken.progress.step)
        if broken.progress.step:
            sound.fit(3)
        kept, expected_ = broken.callbacks[0].state_dict(), sound.callbacks[0].state_dict()
        for name, value in expected_.items():
            if isinstance(value, Tensor):
                assert torch.equal(kept[name], value)
            elif name != "names":
                assert kept[name] == value


def test_the_full_gradient_is_that_of_the_whole_set_with_weighted_classes_too() -> None:
    draw = torch.Generator().manual_seed(4)
    x = torch.randn(1500, 4, generator=draw, dtype=torch.float64)
    y = torch.randint(3, (1500,), generator=draw)
    y[::5] = -100
    y[:1024] = -100  # the first part has no target at all
    loss = nn.CrossEntropyLoss(weight=torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64))
    model = nn.Linear(4, 3).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = Trainer(model, loss, optimizer, MiniBatchLoader((x, y), 10), device="cpu")
    vector = ParameterVector(trainer)
    found, names = vector.full_gradient()
    loss(model(x), y).backward()
    assert names == ["weight", "bias"]
    assert torch.allclose(found, vector.gradient(), rtol=0, atol=1e-15)


class OtherGradient(Callback):
    """Looks at the gradient of other samples before each update."""

    def __init__(self, rows: list[int]) -> None:
        super().__init__()
        self.rows = rows

    def on_gradient(self, trainer: Any, batch: Any, loss: Tensor) -> None:
        kept = [p.grad.clone() for p in trainer.model.parameters()]
        (other,) = trainer.read(BatchLoader((X[self.rows], LABELS[self.rows])))
        trainer.batch_gradient(other)
        for parameter, gradient in zip(trainer.model.parameters(), kept, strict=True):
            parameter.grad = gradient


LABELS = torch.tensor([0, 1, 2, 2, 0, 1, 2])
EACH = torch.tensor([0.2, 1.0, 5.0], dtype=torch.float64)


def of_classes(callback: Callback, **options: Any) -> tuple[list[float], list[float]]:
    """Each epoch's loss, as recorded and as the mean of its updates' losses by their classes."""
    torch.manual_seed(0)
    model, log = nn.Linear(D, 3).double(), StepLosses()
    loader = MiniBatchLoader((X, LABELS), 3, seed=2)
    optimizer, loss = torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss(EACH)
    given: dict[str, Any] = {"device": "cpu", "callbacks": [callback, log]} | options
    history = Trainer(model, loss, optimizer, loader, **given).fit(3)
    counts = [float(EACH[LABELS[rows]].sum()) for rows in batches(loader, 3)]
    each = np.array([log.losses, counts]).reshape(2, 3, 3)
    return history.train_loss, np.average(each[0], axis=1, weights=each[1]).tolist()


@pytest.mark.parametrize("rows", [[0, 1, 2], [6]])
def test_an_epochs_loss_is_weighted_by_its_batches_not_by_other_gradients(rows: list[int]) -> None:
    """Where batches are cut, it was weighted by the last gradient of each update."""
    found, expected = of_classes(OtherGradient(rows), microbatch_size=2)
    assert found == pytest.approx(expected, rel=1e-12)


def test_a_parameter_without_a_gradient_stays_without() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(D, 1), nn.Linear(D, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    for make in (SVRG, SAGA):
        model = Half().double()
        before = model.idle.weight.detach().clone()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.5)
        loader = LOADERS["minibatch"]()
        Trainer(model, nn.MSELoss(), optimizer, loader, device="cpu", callbacks=[make()]).fit(3)
        assert torch.equal(model.idle.weight, before)  # no gradient, no decay
        assert model.idle.weight.grad is None


@pytest.mark.parametrize("make", [lambda: SVRG(1000), SAGA])
def test_a_layer_that_is_unfrozen_learns_from_the_next_update_on(
    make: Callable[[], Callback],
) -> None:
    torch.manual_seed(3)
    model = nn.Linear(D, 1).double()
    model.bias.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    loader = BatchLoader((X, Y))  # of which the corrected gradient is the full one
    trainer = Trainer(model, nn.MSELoss(), optimizer, loader, device="cpu", callbacks=[make()])
    trainer.fit(2)
    model.bias.requires_grad_(True)
    errors = (model(X) - Y).detach()
    before = model.bias.detach().clone()
    trainer.fit(3)
    expected = before - 0.05 * 2 * errors.mean(dim=0)
    assert torch.allclose(model.bias, expected, rtol=0, atol=1e-15)


def ranking(output: Tensor, targets: Tensor) -> Tensor:
    gaps = (output - output.T) - (targets - targets.T)
    return gaps.square().sum() / max(1, len(output) * (len(output) - 1))


class Weighs(Trainer):
    """Divides by weights, and does not say so."""

    def compute_loss(self, batch: Any) -> Tensor:
        weights = 1 + batch.inputs[:, :1].abs()
        error = (self.model(batch.inputs) - batch.targets).square()
        return (weights * error).sum() / weights.sum()


class Noisy(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.randn(1).to(x)


@pytest.mark.parametrize("make", [SVRG, SAGA])
@pytest.mark.parametrize(
    ("kind", "layer", "loss", "said"),
    [
        (Trainer, nn.Linear, ranking, "needs a loss that averages over the samples, and this one"),
        (Weighs, nn.Linear, None, "needs a loss that averages over the samples, and this one is"),
        (Trainer, Noisy, nn.MSELoss(), "something draws random numbers in each; leave it out"),
    ],
)
def test_what_is_no_mean_of_functions_of_samples_is_refused(
    make: Callable[[], Callback], kind: type[Trainer], layer: Any, loss: Any, said: str
) -> None:
    model = layer(D, 1).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    loader = MiniBatchLoader((X, Y), 3)
    before = [p.detach().clone() for p in model.parameters()]
    trainer = kind(model, loss, optimizer, loader, device="cpu", callbacks=[make()])
    with pytest.raises(ConfigError, match=said):
        trainer.fit(1)
    assert all(map(torch.equal, before, model.parameters()))


@pytest.mark.parametrize("make", [SVRG, SAGA])
def test_a_mean_of_ones_own_is_taken_as_that_of_torch(make: Callable[[], Callback]) -> None:
    found = []
    for loss in (nn.MSELoss(), lambda output, targets: (output - targets).square().mean()):
        torch.manual_seed(3)
        model = nn.Linear(D, 1).double()
        optimizer = torch.optim.SGD(model.parameters(), lr=LR)
        loader = MiniBatchLoader((X, Y), 3, seed=2)
        Trainer(model, loss, optimizer, loader, device="cpu", callbacks=[make()]).fit(3)
        found.append(model.weight.detach())
    assert torch.allclose(*found, rtol=0, atol=1e-14)


# ── what changes in mid-run ─────────────────────────────────────────────────────────────────────


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.last = nn.Linear(D, 4), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x)))


def freeze(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model.first.requires_grad_(False)


def unfreeze(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model.first.requires_grad_(True)


def bind(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model.first.weight.data = model.first.weight.data / 2


def add_group(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model.first.requires_grad_(True)
    optimizer.add_param_group({"params": model.first.parameters(), "lr": 0.02})


def remove(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.param_groups[0]["params"] = list(model.last.parameters())


CHANGES = {
    "freeze": (True, [freeze]),
    "freeze and unfreeze": (True, [freeze, unfreeze]),
    "bind": (True, [bind]),
    "add a group": (False, [add_group]),
    "add a group, and freeze it": (False, [add_group, freeze]),
    "remove": (True, [remove]),
}


@pytest.mark.parametrize("make", [lambda: SVRG(3), SAGA])
@pytest.mark.parametrize("change", CHANGES)
def test_of_one_full_batch_they_are_descent_whatever_is_done_to_the_model(
    change: str, make: Callable[[], Callback]
) -> None:
    whole, acts = CHANGES[change]

    def start() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = Two().double()
        model.first.requires_grad_(whole)
        held = model.parameters() if whole else model.last.parameters()
        return model, torch.optim.SGD(held, lr=0.1)

    class Act(Callback):
        every_n_steps = 2

        def on_safe_point(self, trainer: Trainer) -> None:
            number = trainer.progress.step // 2 - 1
            for act in acts[number : number + 1]:
                act(trainer.model, trainer.optimizer)

    model, optimizer = start()
    loader, callbacks = BatchLoader((X, Y)), [make(), Act()]
    Trainer(model, nn.MSELoss(), optimizer, loader, device="cpu", callbacks=callbacks).fit(8)
    hand, optimizer = start()
    for step in range(1, 9):
        optimizer.zero_grad()
        nn.functional.mse_loss(hand(X), Y).backward()
        optimizer.step()
        for act in acts[step // 2 - 1 : step // 2] if step % 2 == 0 else []:
            act(hand, optimizer)
    for got, expected_ in zip(model.parameters(), hand.parameters(), strict=True):
        assert torch.allclose(got, expected_, rtol=0, atol=1e-13)


class InPlace(Two):
    """Changes its input where it lies, and its weights too."""

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(0.5)
        with torch.no_grad():
            self.last.weight.clamp_(-0.2, 0.2)
        return super().forward(x)


class OutOfPlace(Two):
    def forward(self, x: Tensor) -> Tensor:
        self.last.weight.data = self.last.weight.data.clamp(-0.2, 0.2)
        return super().forward(0.5 * x)


@pytest.mark.parametrize("make", [lambda: SVRG(3), SAGA])
@pytest.mark.parametrize("order", ["reshuffle", "sequential"])
def test_a_model_may_work_in_place(make: Callable[[], Callback], order: str) -> None:
    x = X.clone()

    def trained(model: nn.Module) -> list[Tensor]:
        optimizer = torch.optim.SGD(model.double().parameters(), lr=0.1)
        loader = MiniBatchLoader((x, Y), 3, order=order, seed=2)
        trainer = Trainer(model, nn.MSELoss(), optimizer, loader, device="cpu", callbacks=[make()])
        trainer.fit(4)
        return [p.detach() for p in model.parameters()]

    in_place = trained(InPlace())
    assert torch.equal(x, X)
    assert all(map(torch.equal, in_place, trained(OutOfPlace())))


def test_a_layer_that_begins_to_draw_in_mid_run_is_refused() -> None:
    model = nn.Sequential(nn.Linear(D, 4), nn.Dropout(0.5), nn.Linear(4, 1)).double()
    model[1].eval()

    class Wakes(Callback):
        every_n_steps = 2

        def on_safe_point(self, trainer: Trainer) -> None:
            trainer.model[1].train()

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    callbacks = [SVRG(), Wakes()]
    trainer = Trainer(
        model, nn.MSELoss(), optimizer, MiniBatchLoader((X, Y), 3), device="cpu",
        callbacks=callbacks,
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"layer '1' .Dropout. draws random numbers"):
        trainer.fit(1)
    assert trainer.progress.step == 2


def in_ranks(*_: Any) -> Tensor:
    trainer = build(MiniBatchLoader((X, Y), 3, seed=2), SVRG())
    trainer.fit(4)
    return weights(trainer)


@pytest.mark.long
def test_svrg_in_two_processes_follows_that_of_one() -> None:
    alone = in_ranks()
    for theirs in on_ranks(in_ranks):  # some shares of batches are empty
        assert torch.allclose(theirs, alone, rtol=0, atol=1e-13)


def losses_in_ranks(*_: Any) -> tuple[list[float], list[float]]:
    return of_classes(SVRG(every_n_steps=2))


@pytest.mark.long
def test_svrg_in_two_processes_weighs_the_losses_of_its_own_batches() -> None:
    for recorded, own in on_ranks(losses_in_ranks):
        assert recorded == pytest.approx(own, rel=1e-12)


# ── what can't be ───────────────────────────────────────────────────────────────────────────


def refused(model: nn.Module, callback: Callback, loss: Any = None, **options: Any) -> str:
    optimizer = options.pop("optimizer", torch.optim.SGD)(model.double().parameters(), lr=0.1)
    loader = options.pop("loader", MiniBatchLoader((X, Y), 3))
    with pytest.raises(ConfigError) as error:
        Trainer(
            model,
            loss or nn.MSELoss(),
            optimizer,
            loader,
            device="cpu",
            callbacks=[callback],
            **options,
        ).fit(1)
    return str(error.value)


SAME = "variance_reduction: SVRG compares gradients of the same function, and layer '1' "


def test_models_losses_and_optimizers_that_can_not_be_corrected_are_named() -> None:
    def model(*layers: nn.Module) -> nn.Module:
        return nn.Sequential(nn.Linear(D, 4), *layers, nn.Linear(4, 1))

    assert refused(model(nn.BatchNorm1d(4)), SVRG()) == (
        f"{SAME}(BatchNorm1d) makes a sample's output depend on its batch; leave it out"
    )
    assert refused(model(nn.Dropout(0.1)), SVRG()) == (
        f"{SAME}(Dropout) draws random numbers in each pass; leave it out"
    )
    assert refused(model(), SVRG(), optimizer=torch.optim.LBFGS) == (
        "variance_reduction: SVRG corrects one gradient per update, and L-BFGS evaluates several"
    )
    assert refused(model(), SAGA(), nn.MSELoss(reduction="sum")) == (
        "variance_reduction: SAGA needs a loss that averages over the samples; use reduction='mean'"
    )
    assert refused(model(), SAGA(memory_limit=1000)) == (
        "variance_reduction: SAGA needs a table of 7 samples · 21 parameters, 0.0 MiB, over the "
        "memory_limit of 0.0 MiB; raise it, or use svrg"
    )
    labels = torch.tensor([0, 1, -100, 1, 0, 1, 1])
    for loss in (nn.CrossEntropyLoss(), nn.CrossEntropyLoss(weight=torch.ones(2).double())):
        loader = MiniBatchLoader((X, labels.clamp(min=0) if loss.weight is not None else labels), 3)
        assert refused(nn.Linear(D, 2), SAGA(), loss, loader=loader) == (
            "variance_reduction: SAGA needs a loss that weighs every sample alike; use svrg"
        )
    said = "engine: scan can't run this: SVRG corrects the gradient of every update; use eager"
    assert refused(model(), SVRG(), engine="scan") == said
    optimizer = torch.optim.SGD((quiet := model(nn.Dropout(0.0)).double()).parameters(), lr=0.1)
    loader = MiniBatchLoader((X, Y), 3)
    Trainer(quiet, nn.MSELoss(), optimizer, loader, device="cpu", callbacks=[SVRG()]).fit(1)


def test_ignored_targets_of_a_dataset_are_found_when_it_is_read() -> None:
    class Rows(torch.utils.data.Dataset[tuple[Tensor, int]]):
        def __len__(self) -> int:
            return N

        def __getitem__(self, i: int) -> tuple[Tensor, int]:
            return X[i], -100 if i == 3 else i % 3

    model = nn.Linear(D, 3).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    loader = MiniBatchLoader(Rows(), 3)
    trainer = Trainer(
        model, nn.CrossEntropyLoss(), optimizer, loader, device="cpu", callbacks=[SAGA()]
    )
    with pytest.raises(ConfigError, match="SAGA needs a loss that weighs every sample alike"):
        trainer.fit(1)


def test_a_train_step_that_leaves_the_correction_out_is_found() -> None:
    class Own(Trainer):
        def train_step(self, batch: Any) -> Tensor:
            loss = self.batch_gradient(batch)
            self.optimizer.step()
            return loss

    model = nn.Linear(D, 1).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = Own(
        model, nn.MSELoss(), optimizer, SampleLoader((X, Y)), device="cpu", callbacks=[SVRG()]
    )
    with pytest.raises(ModelError, match=r"^variance_reduction: Own.train_step makes updates"):
        trainer.fit(1)


def go_on(trainer: Trainer, state: dict[str, Any]) -> None:
    trainer.load_state_dict(state)
    trainer.fit(2)


def test_a_state_of_another_model_or_a_hostile_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for make in (SVRG, SAGA):
        trainer = build(LOADERS["sample"](), make())
        trainer.fit(1)
        for name, wrong in (
            ("names", ["other"]),
            ("extra", -1),
            ("used", ["weight", 3]),
            ("mean", None),
            ("mean", torch.full((D,), math.nan, dtype=torch.float64)),
            ("mean", torch.zeros(2, dtype=torch.float64)),
        ):
            state = trainer.state_dict()
            state["callbacks"][make.__name__][name] = wrong
            fresh = build(LOADERS["sample"](), make())
            with pytest.raises(CheckpointError, match=make.__name__):
                go_on(fresh, state)
    # A table may take what its callback says, and no more.
    monkeypatch.setattr(expected, "_CALLBACK_BYTES", -4 * D * 8)
    store = CheckpointStore(tmp_path)
    store.save(trainer.progress.step, trainer.state_dict())
    with pytest.raises(CheckpointError, match="callbacks' state takes"):
        store.load_newest(tensor_check(build(LOADERS["sample"]())))
    monkeypatch.setattr(expected, "_CALLBACK_BYTES", -3 * D * 8)
    store.load_newest(tensor_check(build(LOADERS["sample"](), SAGA())))


# ── the command line ────────────────────────────────────────────────────────────────────────

CONFIG: dict[str, Any] = {
    "data": {"source": "linear_regression", "num_samples": 40, "num_features": 3},
    "model": {"name": "linear"},
    "loss": "mse",
    "loader": {"name": "sample"},
    "optimizer": {"lr": 0.02},
    "variance_reduction": "svrg",
    "precision": "fp64",
    "epochs": 4,
    "log": {"picture": False},
    "device": "cpu",
}


@pytest.mark.few(1)
@pytest.mark.parametrize("reduction", [{"name": "svrg", "every_n_steps": 13}, "saga"])
def test_the_command_trains_and_resumes_to_the_same_bits(
    reduction: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text(json.dumps(CONFIG | {"variance_reduction": reduction}))
    assert main(["--config", "a.yaml", "--dry-run"]) == 0
    assert main(["--config", "a.yaml", "--output-dir", "whole"]) == 0
    assert "with engine eager" in capsys.readouterr().err
    for epochs in (1, 3, 4):
        more = ["--resume"] if epochs > 1 else []
        run = ["--config", "a.yaml", f"epochs={epochs}", "--output-dir", "parts", *more]
        assert main(run) == 0
    files = [Path(run, "model.safetensors").read_bytes() for run in ("whole", "parts")]
    assert files[0] == files[1]
    other = ["--config", "a.yaml", "variance_reduction=null", "--output-dir", "parts", "--resume"]
    assert main(other) == 2
    assert "other settings: variance_reduction is " in capsys.readouterr().err
    assert main(["replay", "--step", "50", "whole"]) == 0


FAULTS = [
    (
        {"variance_reduction": "svrq"},
        "variance_reduction.name: must be one of svrg, saga; got 'svrq'; did you mean svrg?",
    ),
    (
        {"loader": "batch"},
        "variance_reduction: has no effect under batch, whose gradient has no variance; remove it",
    ),
    (
        {"optimizer": {"name": "lbfgs"}},
        "variance_reduction: corrects one gradient per update, and lbfgs evaluates several; "
        "remove it",
    ),
    (
        {"model": {"name": "mlp", "hidden": [4], "dropout": 0.5}},
        "variance_reduction: SVRG compares gradients of the same function, and layer '2' "
        "(Dropout) draws random numbers in each pass; leave it out",
    ),
    (
        {"variance_reduction": {"name": "saga", "memory_limit": "1KB"}},
        "variance_reduction: SAGA needs a table of 40 samples · 4 parameters, 0.0 MiB, over the "
        "memory_limit of 0.0 MiB; raise it, or use svrg",
    ),
    (
        {"variance_reduction": {"name": "saga", "memory_limit": "much"}},
        "variance_reduction.memory_limit: must be a number of bytes such as 512MB or 2GiB, "
        "got 'much'",
    ),
    (
        {"engine": "scan"},
        "engine: scan can't run this: SVRG corrects the gradient of every update; use eager",
    ),
]


@pytest.mark.parametrize(("changes", "said"), FAULTS)
def test_the_command_names_what_can_not_be(
    changes: Any, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text(json.dumps(CONFIG | changes))
    assert main(["--config", "a.yaml"]) == 2
    place, _, message = capsys.readouterr().err.partition(": ")
    assert place.startswith("a.yaml:1:")
    assert message == said + "\n"
    assert [path.name for path in tmp_path.iterdir()] == ["a.yaml"]


def test_one_full_batch_with_repeats_has_variance_to_reduce() -> None:
    loader = {"name": "batch", "order": "replacement"}
    assert parse_config(CONFIG | {"loader": loader}).variance_reduction is not None
    trainer = build(BatchLoader((X, Y), order="replacement", seed=1), SVRG(3))
    start = weights(trainer).numpy().copy()
    trainer.fit(8)
    order = batches(BatchLoader((X, Y), order="replacement", seed=1), 8)
    assert np.abs(weights(trainer).numpy() - svrg_in_numpy(start, order, 3)).max() < 1e-13
