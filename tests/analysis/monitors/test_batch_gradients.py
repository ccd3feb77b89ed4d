"""Tests of gradients, step sizes, cosines and layers against their definitions, by numpy."""

import math

import numpy as np
import pytest
import torch
from helpers.thread_ranks import on_threads
from torch import Tensor, nn
from torch.autograd.functional import hessian
from torch.func import functional_call

from gdtrain import (
    Alpha,
    BatchLoader,
    Callback,
    CurvatureMonitor,
    GradientCosine,
    GradientNorm,
    GradientTestsMonitor,
    MiniBatchLoader,
    SampleLoader,
    Trainer,
    UpdateRatio,
)
from gdtrain.analysis.gradient_tests import AlongUpdate, gradient_tests, step_size_alpha
from gdtrain.errors import ConfigError, ModelError

N = 23


def network() -> nn.Sequential:
    """309 parameters in float64."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 14), nn.Tanh(), nn.Linear(14, 10), nn.Tanh(), nn.Linear(10, 3)
    ).double()


def data() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(N, 8, generator=draw).double(), torch.randn(N, 3, generator=draw).double()


def trainer_of(*watch: Callback, loader=None, loss=None, model=None, lr=0.2, **options) -> Trainer:
    model = model or network()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.5)
    loader = loader or MiniBatchLoader(data(), 7, order="sequential")
    return Trainer(
        model, loss or nn.MSELoss(), optimizer, loader, device="cpu", callbacks=watch, **options
    )


def sample_gradients(model: nn.Module, loss, pair: tuple[Tensor, Tensor]) -> np.ndarray:
    """Each sample's own gradient, [B, P], one backward pass after the other."""
    rows = []
    for x, y in zip(*pair, strict=True):
        value = loss(model(x[None]), y[None])
        rows.append(
            torch.cat([g.flatten() for g in torch.autograd.grad(value, [*model.parameters()])])
        )
    return torch.stack(rows).numpy()


# ── norm, inner-product and orthogonality test, signal-to-noise ratio ───────────────────────────


def by_definition(each: np.ndarray) -> dict[str, float]:
    """The formulas of the papers as they stand there."""
    count, g = len(each), each.mean(0)
    pairs, length = count * (count - 1), np.linalg.norm(g)
    inner = each @ g
    apart = each / length - np.outer(inner / length**3, g)
    variance = (each**2).mean(0) - g**2
    return {
        "norm_test": math.sqrt(((each**2).sum() / length**2 - count) / pairs),
        "inner_product_test": math.sqrt(((inner**2).sum() / length**4 - count) / pairs),
        "orthogonality_test": math.sqrt((apart**2).sum() / pairs),
        "gradient_snr": float((g**2 / (variance + 1e-5)).mean()),
    }


@pytest.mark.parametrize("microbatch_size", [None, 1, 3, 7])
def test_the_gradient_tests_are_those_of_the_next_batch(microbatch_size) -> None:
    watch = GradientTestsMonitor(every_n_steps=2)
    trainer = trainer_of(watch, microbatch_size=microbatch_size)
    trainer.fit(1)  # 4 updates; the next batch is the first
    X, Y = data()
    expected = by_definition(sample_gradients(trainer.model, nn.MSELoss(), (X[:7], Y[:7])))
    assert watch.report() == pytest.approx(expected, rel=1e-8)


def test_two_ranks_find_what_one_does() -> None:
    trainers = [trainer_of(GradientTestsMonitor(every_n_steps=2)) for _ in range(2)]
    alone = trainer_of(GradientTestsMonitor(every_n_steps=2), GradientCosine(every_n_steps=2))
    alone.fit(1)

    def work(world):
        trainer = trainers[world.rank]
        trainer.world = trainer.microbatches.world = world
        trainer.callbacks.append(GradientCosine(every_n_steps=2))
        trainer.callbacks.append(Alpha(every_n_steps=2))
        trainer.fit(1)
        return [callback.records for callback in trainer.callbacks]

    for tests, cosines, alphas in on_threads(2, work):
        for mine, theirs in zip(tests, alone.callbacks[0].records, strict=True):
            assert mine == pytest.approx(theirs, rel=1e-8)
        for mine, theirs in zip(cosines, alone.callbacks[1].records, strict=True):
            assert mine == pytest.approx(theirs, rel=1e-8)
        assert [record["step"] for record in alphas] == [2, 4]


def test_weighted_classes_and_ignored_targets_count_as_in_the_loss() -> None:
    """g_i is what sample i adds to the batch's mean, times the number of samples."""
    weight = torch.tensor([1.0, 5.0, 0.2]).double()
    labels = torch.arange(N) % 3
    labels[::5] = -100
    X = data()[0]
    loss = nn.CrossEntropyLoss(weight)
    trainer = trainer_of(loss=loss, loader=BatchLoader((X, labels)))
    found = gradient_tests(trainer, next(iter(trainer.read(trainer.loader))))
    batch = next(iter(trainer.loader))
    shares = torch.where(batch.targets == -100, 0, weight[batch.targets.clamp(min=0)])
    each, mean = np.zeros((N, 309)), float(shares.mean())
    for row, share in enumerate(shares.tolist()):
        if share:
            pair = batch.inputs[row : row + 1], batch.targets[row : row + 1]
            each[row] = sample_gradients(trainer.model, loss, pair)[0] * share / mean
    expected = by_definition(each)
    got = (found.norm, found.inner_product, found.orthogonality, found.signal_to_noise)
    assert got == pytest.approx(tuple(expected.values()), rel=1e-8)


def test_alike_samples_pass_every_test_and_one_alone_has_none() -> None:
    X, Y = data()
    alike = BatchLoader((X[:1].expand(5, -1).clone(), Y[:1].expand(5, -1).clone()))
    watch = GradientTestsMonitor(every_n_epochs=1)
    trainer_of(watch, loader=alike, lr=0.01).fit(1)
    found = watch.report()
    names = ("norm_test", "inner_product_test", "orthogonality_test")
    assert all(abs(found[name]) < 1e-7 for name in names)
    watch = GradientTestsMonitor(every_n_epochs=1)
    trainer_of(watch, loader=SampleLoader((X, Y))).fit(1)
    assert all(math.isnan(value) for value in watch.records[0].values() if type(value) is float)


# ── between and along updates ───────────────────────────────────────────────────────────────────


class Steps(Callback):
    """The gradient of every update, and the weights before and after each."""

    every_n_steps = 1

    def __init__(self) -> None:
        super().__init__()
        self.gradients: list[Tensor] = []
        self.weights: list[Tensor] = []

    def on_fit_start(self, trainer: Trainer) -> None:
        self.on_safe_point(trainer)

    def on_before_update(self, trainer: Trainer) -> None:
        self.gradients.append(torch.cat([p.grad.flatten() for p in trainer.model.parameters()]))

    def on_safe_point(self, trainer: Trainer) -> None:
        parts = [p.detach().flatten() for p in trainer.model.parameters()]
        self.weights.append(torch.cat(parts))


@pytest.mark.parametrize("every", [1, 3])
def test_the_cosine_is_that_of_two_successive_updates(every) -> None:
    watch, steps = GradientCosine(every_n_steps=every), Steps()
    trainer_of(watch, steps, microbatch_size=3).fit(3)
    assert [record["step"] for record in watch.records] == list(range(every, 13, every))
    for record in watch.records:
        if record["step"] < 12:
            one, two = steps.gradients[record["step"] - 1 : record["step"] + 1]
            expected = float(one @ two / (one.norm() * two.norm()))
            assert record["gradient_cosine"] == pytest.approx(expected, rel=1e-8)


def alpha_by_cockpit(t: float, f, df, var_f, var_df) -> float:
    """The normal equations of Schneider and others, and their α, in their own notation."""
    phi = np.array([[1, 0, 0], [1, t, t**2], [0, 1, 0], [0, 1, 2 * t]]).T
    inverse = np.linalg.inv(np.diag([*var_f, *var_df]))
    mu = np.linalg.inv(phi @ inverse @ phi.T) @ phi @ inverse @ np.array([*f, *df])
    return -1.0 if mu[2] < 0 else 2 * t / (-mu[1] / mu[2]) - 1


@pytest.mark.parametrize("lr", [0.05, 0.5, 2.0])
def test_alpha_is_that_of_the_parabola_along_the_update(lr) -> None:
    watch, steps = Alpha(every_n_steps=2), Steps()
    trainer_of(watch, steps, lr=lr).fit(2)
    X, Y = data()
    rows = [slice(0, 7), slice(7, 14), slice(14, 21), slice(21, 23)] * 3
    loss, model = nn.MSELoss(), network()
    for record in watch.records:
        t = record["step"]
        before, after = steps.weights[t - 1], steps.weights[t]
        length = float((after - before).norm())
        direction = ((after - before) / length).numpy()
        f, df, var_f, var_df = [], [], [], []
        for theta, at in ((before, rows[t - 1]), (after, rows[t])):
            nn.utils.vector_to_parameters(theta, model.parameters())
            with torch.no_grad():
                each = np.array(
                    [
                        float(loss(model(x[None]), y[None]))
                        for x, y in zip(X[at], Y[at], strict=True)
                    ]
                )
            slopes = sample_gradients(model, loss, (X[at], Y[at])) @ direction
            f, var_f = [*f, each.mean()], [*var_f, each.var(ddof=1)]
            df, var_df = [*df, slopes.mean()], [*var_df, slopes.var(ddof=1)]
        expected = alpha_by_cockpit(length, f, df, var_f, var_df)
        assert record["alpha"] == pytest.approx(expected, rel=1e-8)
    assert [record["step"] for record in watch.records] == [2, 4, 6, 8]


@pytest.mark.parametrize("rate", [0.25, 0.5, 0.75, 1.0])
def test_on_a_parabola_alpha_says_where_it_ended(rate) -> None:
    """J = (θ - 1)², from θ = 0: an update of rate r ends at 2 r, with the lowest point at 1."""
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    ones = torch.ones(4, 1).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    for loader in (BatchLoader((ones, ones)), SampleLoader((ones[:1], ones[:1]))):
        nn.init.zeros_(model.weight)
        watch = Alpha(every_n_steps=1)
        Trainer(model, nn.MSELoss(), optimizer, loader, device="cpu", callbacks=[watch]).fit(1)
        assert watch.records[0]["alpha"] == pytest.approx(2 * rate - 1, abs=1e-8)


def test_alpha_where_the_loss_curves_downward_or_nothing_moved() -> None:
    up = AlongUpdate(1.0, -1.0, 1.0, 1.0)
    assert step_size_alpha(1.0, up, AlongUpdate(-1.0, -3.0, 1.0, 1.0)) == -1
    assert step_size_alpha(0.0, up, up) == -1
    assert math.isnan(step_size_alpha(1.0, up, AlongUpdate(math.inf, 0.0, 1.0, 1.0)))


# ── layers ──────────────────────────────────────────────────────────────────────────────────────


def test_norms_and_ratios_of_layers() -> None:
    norms, ratios = (
        GradientNorm(every_n_steps=3, layers=True),
        UpdateRatio(every_n_steps=3, layers=True),
    )
    steps = Steps()
    trainer_of(norms, ratios, steps).fit(1)
    (norm,), (ratio,) = norms.records, ratios.records
    sizes = {"0": slice(0, 126), "2": slice(126, 276), "4": slice(276, 309)}
    before, after = steps.weights[2], steps.weights[3]
    for name, own in sizes.items():
        expected = float(steps.gradients[3][own].norm())
        assert norm[f"gradient_norm/{name}"] == pytest.approx(expected, rel=1e-8)
        moved = float((after - before)[own].norm() / before[own].norm())
        assert ratio[f"update_ratio/{name}"] == pytest.approx(moved, rel=1e-8)
        length = float(before[own].norm())
        assert ratio[f"weight_norm/{name}"] == pytest.approx(length, rel=0.2)
    assert len(norm) == 2 + 1 + 3
    assert len(ratio) == 2 + 1 + 6


# ── curvature at a cadence ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("matrix", ["hessian", "gauss_newton"])
def test_the_curvature_monitor_against_the_dense_matrix(matrix) -> None:
    watch = CurvatureMonitor(every_n_epochs=2, matrix=matrix, top=2, trace_products=400)
    model = nn.Sequential(nn.Linear(8, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    trainer = trainer_of(watch, model=model, microbatch_size=5)
    history = trainer.fit(2)
    X, Y = data()
    names, sizes = zip(*((n, p.numel()) for n, p in model.named_parameters()), strict=True)
    theta = torch.cat([p.detach().flatten() for p in model.parameters()])

    def outputs(flat: Tensor) -> Tensor:
        shapes = [p.shape for p in model.parameters()]
        parts = [t.view(s) for t, s in zip(torch.split(flat, sizes), shapes, strict=True)]
        return functional_call(model, dict(zip(names, parts, strict=True)), (X,))

    if matrix == "hessian":
        dense = hessian(lambda flat: nn.functional.mse_loss(outputs(flat), Y), theta)
    else:
        slopes = torch.autograd.functional.jacobian(lambda flat: outputs(flat).flatten(), theta)
        dense = 2 / Y.numel() * slopes.T @ slopes
    top = torch.linalg.eigvalsh(dense).flip(0)
    assert history.eigenvalue_1[-1] == pytest.approx(float(top[0]), rel=1e-6)
    assert history.eigenvalue_2[-1] == pytest.approx(float(top[1]), rel=1e-6)
    assert history.trace[-1] == pytest.approx(float(dense.trace()), rel=1e-10)
    assert history.trace_error[-1] == 0


class Custom(Trainer):
    def compute_loss(self, batch):
        return self.loss(self.model(batch.inputs), batch.targets)


def test_what_a_curvature_monitor_can_not_have_is_said_before_training() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = CurvatureMonitor(matrix="gauss_newton")
    trainer = Custom(model, nn.MSELoss(), optimizer, BatchLoader(data()), callbacks=[watch])
    with pytest.raises(ModelError, match=r"^gauss_newton: needs loss\(model\(inputs\), targets\)"):
        trainer.fit(1)
    assert trainer.step == 0
    for options, said in (
        ({"trace_products": 3}, "trace_products: must be 0 or >= 6, got 3"),
        ({"matrix": "fisher"}, "matrix: must be hessian or gauss_newton, got 'fisher'"),
        ({"top": 9, "max_products": 4}, "max_products: must be >= 9, got 4"),
    ):
        with pytest.raises(ConfigError) as error:
            CurvatureMonitor(**options)
        assert str(error.value) == said


def reshuffled() -> MiniBatchLoader:
    return MiniBatchLoader(data(), 7, seed=3)


@pytest.mark.parametrize("cadence", [{"every_n_steps": 4}, {"every_n_epochs": 1}])
def test_the_batch_after_an_epoch_is_the_next_one_s_first(cadence) -> None:
    norms = GradientNorm(**cadence)
    trainer_of(norms, loader=reshuffled()).fit(3)
    loader, model, firsts = reshuffled(), network(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.5)
    for epoch in range(4):
        loader.set_epoch(epoch)
        for number, batch in enumerate(loader):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(batch.inputs), batch.targets).backward()
            if number == 0:
                gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
                firsts.append(gradient.norm().item())
            optimizer.step()
    found = [record["gradient_norm"] for record in norms.records]
    assert found == pytest.approx(firsts[1:], rel=1e-12)


class AtEpochEnds(Callback):
    """Keeps the states of the ends of epochs."""

    def __init__(self) -> None:
        super().__init__()
        self.states: list[dict] = []

    def on_epoch_end(self, trainer, record) -> None:
        self.states.append(trainer.state_dict())


@pytest.mark.parametrize("kind", [GradientCosine, Alpha])
def test_what_a_look_began_at_the_end_of_an_epoch_is_measured_after_a_resume(kind) -> None:
    whole, ends = kind(every_n_steps=5), AtEpochEnds()
    trainer_of(whole, ends, loader=reshuffled()).fit(3)
    again = kind(every_n_steps=5)
    trainer = trainer_of(again, AtEpochEnds(), loader=reshuffled())
    trainer.load_state_dict(ends.states[0])
    trainer.fit(3)
    assert [record["step"] for record in again.records] == [5, 10]
    assert again.records == whole.records
