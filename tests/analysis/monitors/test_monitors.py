"""Monitors: what they measure, when they look, and that nothing shows that they were there."""

import logging
import math
from typing import Any

import pytest
import torch
from helpers.combinations import combinations
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from gdtrain import (
    Alpha,
    BatchLoader,
    Callback,
    CurvatureMonitor,
    FullLoss,
    GradientCosine,
    GradientNorm,
    GradientTestsMonitor,
    MiniBatchLoader,
    NoiseScale,
    PhasedLoader,
    SampleGradients,
    SampleLoader,
    SharpnessMonitor,
    StepLosses,
    Trainer,
    UpdateRatio,
)
from gdtrain.analysis.curvature.full_loss import Objective
from gdtrain.analysis.monitors.monitor import SHARE, Cost, Monitor, steps_between
from gdtrain.data.loaders.loader import Loader
from gdtrain.errors import ConfigError, DataError

KINDS: list[type[Monitor]] = [
    *(GradientNorm, FullLoss, UpdateRatio),
    *(SharpnessMonitor, NoiseScale, SampleGradients),
    *(CurvatureMonitor, GradientTestsMonitor, GradientCosine, Alpha),
]
OF_UPDATES = (UpdateRatio, GradientCosine, Alpha)


def data(n: int = 23) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(n, 4, generator=draw).double(), torch.randn(n, 2, generator=draw).double()


def network(plain: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    extra = [] if plain else [nn.BatchNorm1d(5), nn.Dropout(0.3)]
    return nn.Sequential(nn.Linear(4, 5), *extra, nn.Tanh(), nn.Linear(5, 2)).double()


def trainer_of(
    loader: Loader, callbacks: list[Callback], plain: bool = True, lr: float = 0.05, **options
) -> Trainer:
    model = network(plain)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.5)
    return Trainer(
        model, nn.MSELoss(), optimizer, loader, device="cpu", callbacks=callbacks, **options
    )


def all_of_them(every: int) -> list[Callback]:
    return [kind(every_n_steps=every) for kind in KINDS]


# ── nothing shows ───────────────────────────────────────────────────────────────────────────


class Gradients(Callback):
    """What ``.grad`` is at every safe point, after those who looked."""

    every_n_steps = 1

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def on_safe_point(self, trainer: Trainer) -> None:
        self.seen.append(torch.cat([p.grad.flatten() for p in trainer.model.parameters()]))


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("form", "every"),
    combinations([BatchLoader, SampleLoader, lambda d: MiniBatchLoader(d, 4)], [1, 3], of=1),
)
def test_a_run_with_all_monitors_has_the_bits_of_one_without(form, every) -> None:
    """With BatchNorm, but for batches of one, and dropout."""
    ends = []
    for watch in ([], all_of_them(every)):
        torch.manual_seed(1)
        losses, gradients = StepLosses(), Gradients()
        plain = form is SampleLoader
        loader = form(data(24))
        trainer = trainer_of(loader, [*watch, losses, gradients], plain)
        torch.manual_seed(2)
        trainer.fit(3)
        state = [v.clone() for v in trainer.model.state_dict().values()]
        ends.append((state, losses.losses, gradients.seen, torch.rand(3)))
        assert all(len(monitor.records) >= 1 for monitor in watch)
    for part, other in zip(*ends, strict=True):
        assert len(part) == len(other)
        pairs = zip(part, other, strict=True)
        assert all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in pairs)


@pytest.mark.long
def test_under_scan_they_see_what_they_see_under_eager_to_rounding() -> None:
    pytest.importorskip("jax")
    ends = {}
    for engine in ("eager", "scan"):
        watch = all_of_them(5)
        trainer = trainer_of(SampleLoader(data()), watch, engine=engine)
        trainer.fit(3)
        assert trainer.engine.name == engine
        ends[engine] = watch
    plain = trainer_of(SampleLoader(data()), [], engine="scan")
    plain.fit(3)
    pairs = zip(plain.model.parameters(), trainer.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    for eager, scan in zip(ends["eager"], ends["scan"], strict=True):
        assert len(eager.records) == len(scan.records) == 69 // 5
        for one, other in zip(eager.records, scan.records, strict=True):
            assert one.keys() == other.keys()
            for name, value in one.items():
                assert value == pytest.approx(other[name], rel=1e-7, nan_ok=True)


class Infinite(IterableDataset):
    def __iter__(self):
        for i in range(20):
            yield torch.full((4,), 0.1 * i).double(), torch.ones(2).double()


def test_of_a_stream_only_the_update_ratio_can_be_had() -> None:
    watch = UpdateRatio(every_n_steps=2)
    trainer_of(MiniBatchLoader(Infinite(), 4), [watch]).fit(1)
    assert [record["step"] for record in watch.records] == [2, 4]
    for kind in KINDS:
        if kind is not UpdateRatio:
            with pytest.raises(DataError, match=rf"^{kind.name}: a stream's samples are read once"):
                trainer_of(MiniBatchLoader(Infinite(), 4), [kind()]).fit(1)


# ── what they measure ───────────────────────────────────────────────────────────────────────


class UpdateNorms(Callback):
    """The norm of the gradient of every update, as the update finds it."""

    def __init__(self) -> None:
        super().__init__()
        self.norms: list[float] = []

    def on_before_update(self, trainer: Trainer) -> None:
        self.norms.append(
            float(torch.cat([p.grad.flatten() for p in trainer.model.parameters()]).norm())
        )


@pytest.mark.parametrize("microbatch_size", [None, 2])
def test_the_gradient_norm_is_that_of_the_next_update_dropout_included(microbatch_size) -> None:
    plain = microbatch_size is not None
    watch, norms = GradientNorm(every_n_steps=1), UpdateNorms()
    loader = MiniBatchLoader(data(), 5)  # 5 updates, the last of 3
    trainer_of(loader, [watch, norms], plain, microbatch_size=microbatch_size).fit(3)
    seen = [record["gradient_norm"] for record in watch.records]
    for step, (before, after) in enumerate(zip(seen, norms.norms[1:], strict=False), start=1):
        if step % 5:  # after an epoch's last update it is of its first batch
            assert before == pytest.approx(after, rel=1e-12)


def test_of_a_batch_loader_it_is_the_norm_of_the_full_gradient() -> None:
    watch = GradientNorm(every_n_epochs=3)
    trainer = trainer_of(BatchLoader(data()), [watch])
    history = trainer.fit(3)
    expected = float(Objective(trainer).gradient().norm())
    assert watch.records[-1]["gradient_norm"] == pytest.approx(expected, rel=1e-12)
    assert history.gradient_norm == [None, None, watch.records[-1]["gradient_norm"]]


def test_the_full_loss_is_the_loss_of_the_next_full_batch_update() -> None:
    watch, losses = FullLoss(every_n_steps=1), StepLosses()
    trainer_of(BatchLoader(data()), [watch, losses]).fit(4)
    seen = [record["full_loss"] for record in watch.records]
    assert seen[:-1] == pytest.approx(losses.losses[1:], rel=1e-12)


class Weights(Callback):
    every_n_steps = 1

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def _keep(self, trainer: Trainer) -> None:
        flat = [p.detach().flatten() for p in trainer.model.parameters()]
        self.seen.append(torch.cat(flat))

    def on_fit_start(self, trainer: Trainer) -> None:
        self._keep(trainer)

    def on_safe_point(self, trainer: Trainer) -> None:
        self._keep(trainer)


@pytest.mark.parametrize("every", [1, 2, 3, 7])
def test_the_update_ratio_is_that_of_one_update(every) -> None:
    watch, weights = UpdateRatio(every_n_steps=every), Weights()
    trainer_of(MiniBatchLoader(data(), 5), [watch, weights]).fit(3)
    theta = weights.seen
    steps = range(every, 16, every)
    assert [record["step"] for record in watch.records] == list(steps)
    for record in watch.records:
        t = record["step"]
        expected = float((theta[t] - theta[t - 1]).norm() / theta[t - 1].norm())
        assert record["update_ratio"] == pytest.approx(expected, rel=1e-12)


def test_it_makes_blocks_no_shorter_than_it_must() -> None:
    watch, blocks = UpdateRatio(every_n_steps=50), StepLosses()
    trainer = trainer_of(SampleLoader(data(500)), [watch, blocks])
    ends: list[int] = []
    blocks.on_safe_point = lambda t: ends.append(t.progress.step)
    trainer.fit(1)
    assert {49, 50, 99, 100, 499, 500} <= set(ends)
    assert len(ends) < 100


def test_sharpness_is_reported_beside_the_limit_and_a_crossing_is_told_once(caplog) -> None:
    """On a quadratic λ stays, and the learning rate crosses the limit twice."""
    X = torch.eye(3).double() * math.sqrt(3 / 2)  # J = ½ |θ - y|² ⇒ λ = 1
    model = nn.Linear(3, 1, bias=False).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)

    class Rates(Callback):
        every_n_steps = 1

        def on_safe_point(self, trainer: Trainer) -> None:
            step = trainer.progress.step
            optimizer.param_groups[0]["lr"] = 3.3 if step in (2, 3, 6) else 0.1

    watch = SharpnessMonitor(every_n_steps=1)
    loader = BatchLoader((X, torch.zeros(3, 1).double()))
    trainer = Trainer(
        model, nn.MSELoss(), optimizer, loader, device="cpu", callbacks=[watch, Rates()]
    )
    with caplog.at_level(logging.WARNING, "gdtrain"):
        trainer.fit(8)
    for record in watch.records:
        assert record["sharpness"] == pytest.approx(1, rel=1e-10)
        assert record["stability_limit"] == 1.5
        lr = 3.3 if record["step"] in (3, 4, 7) else 0.1
        assert record["sharpness_lr_2"] == pytest.approx(lr / 2, rel=1e-10)
        assert record["gradient_evaluations"] >= 2
    assert caplog.messages == [
        f"sharpness 1 times lr / 2 is 1.65 after {step} updates, over the limit of stability, 1.5: "
        "full-batch descent can't settle in that direction at this lr"
        for step in (3, 7)
    ]


@pytest.mark.parametrize(("over", "warnings"), [(0.99, 0), (1.1, 0), (1.6, 1)])
def test_a_first_look_just_over_the_limit_is_no_crossing(over, warnings, caplog) -> None:
    """At the edge of stability, where a run may be when it is looked at first, it hovers there."""
    model = nn.Linear(1, 1, bias=False).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=over)  # λ = 2, so that the limit is lr = 1
    loader = BatchLoader((torch.ones(1, 1).double(), torch.ones(1, 1).double()))
    watch = SharpnessMonitor(every_n_steps=1)
    with caplog.at_level(logging.WARNING, "gdtrain"):
        Trainer(model, nn.MSELoss(), optimizer, loader, device="cpu", callbacks=[watch]).fit(3)
    assert len(caplog.messages) == warnings


def test_weight_decay_counts_to_the_sharpness_that_the_limit_is_compared_with() -> None:
    model = nn.Linear(1, 1, bias=False).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=3.0)
    loader = BatchLoader((torch.ones(1, 1).double(), torch.ones(1, 1).double()))
    watch = SharpnessMonitor(every_n_steps=1)
    Trainer(model, nn.MSELoss(), optimizer, loader, device="cpu", callbacks=[watch]).fit(1)
    assert watch.report() == pytest.approx(
        {"sharpness": 2.0, "sharpness_lr_2": (2 + 3) * 0.1 / 2, "stability_limit": 1.0}
    )


def test_under_adam_there_is_no_limit() -> None:
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    watch = SharpnessMonitor(every_n_steps=2)
    loader = BatchLoader(data())
    Trainer(model, nn.MSELoss(), optimizer, loader, device="cpu", callbacks=[watch]).fit(4)
    assert len(watch.records) == 2
    assert set(watch.report()) == {"sharpness"}


def test_of_several_optimizers_the_sharpness_is_that_of_one_and_there_is_no_limit() -> None:
    """Two that descend as one does; a rate of which the limit could be said is not known."""
    one, several = SharpnessMonitor(every_n_steps=2), SharpnessMonitor(every_n_steps=2)
    for watch in (one, several):
        model = network()
        optimizer: Any = torch.optim.SGD(model.parameters(), lr=0.05)
        if watch is several:
            first = torch.optim.SGD(model[0].parameters(), lr=0.05)
            optimizer = {"in": first, "out": torch.optim.SGD(model[2].parameters(), lr=0.05)}
        loader = BatchLoader(data())
        Trainer(model, nn.MSELoss(), optimizer, loader, device="cpu", callbacks=[watch]).fit(4)
    assert len(several.records) == 2
    assert set(several.report()) == {"sharpness"}
    for record, alone in zip(several.records, one.records, strict=True):
        assert record["sharpness"] == pytest.approx(alone["sharpness"], rel=1e-9)


# ── when they look ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", KINDS)
def test_at_most_one_cadence(kind) -> None:
    if kind in OF_UPDATES:
        with pytest.raises(TypeError):
            kind(every_n_epochs=1)
        return
    with pytest.raises(ConfigError, match=r"^every_n_epochs: can't be set together with every_n_s"):
        kind(every_n_steps=1, every_n_epochs=1)


@pytest.mark.parametrize("kind", [SharpnessMonitor, SampleGradients, CurvatureMonitor])
def test_those_that_cost_passes_over_the_data_look_ten_times_in_a_run(kind) -> None:
    watch = kind()
    trainer_of(BatchLoader(data()), [watch]).fit(40)
    assert [record["epoch"] for record in watch.records] == list(range(4, 41, 4))


def test_the_default_cadence_keeps_to_its_share_whatever_a_gradient_takes() -> None:
    """Of a look of l + m s seconds and updates of u + B s, for every s from the least on."""
    trainer = trainer_of(MiniBatchLoader(data(), 5), [])
    parameters = sum(p.numel() for p in trainer.model.parameters())
    for cost in (Cost(1e-3, 5), Cost(1e-5, 500), Cost(4e-4, 0)):
        every = steps_between(trainer, cost)
        assert str(every).rstrip("0") in ("1", "2", "5")
        for seconds in (6 * parameters / 1e11, 1e-6, 1e-3, 1.0):
            look, update = cost.seconds + cost.samples * seconds, 50e-6 + 5 * seconds
            assert look / (every * update) <= SHARE
        worst = max(cost.seconds / 50e-6, cost.samples / 5) / SHARE
        assert every <= 2.5 * worst


def test_a_run_too_short_for_the_default_cadence_is_told(caplog) -> None:
    phases = PhasedLoader([(1, MiniBatchLoader(data(), 5)), (None, BatchLoader(data()))])
    updates = len(phases.plan(0)) + 2  # in the first of three epochs, and in the others
    with caplog.at_level(logging.WARNING, "gdtrain"):
        trainer_of(phases, [NoiseScale()]).fit(3)
    (said,) = caplog.messages
    assert said.startswith("noise_scale measures every ")
    assert said.endswith(
        f"and this run has {updates}; set every_n_steps or every_n_epochs to measure more often"
    )


@pytest.mark.parametrize("kind", OF_UPDATES)
def test_so_is_one_too_short_for_a_look_at_an_update(kind, caplog) -> None:
    with caplog.at_level(logging.WARNING, "gdtrain"):
        trainer_of(MiniBatchLoader(data(), 5), [kind()]).fit(1)
    (said,) = caplog.messages
    assert said.startswith(f"{kind.name} measures every ")
    assert "and this run has 5; set every_n_steps" in said


def test_a_second_fit_goes_on_at_the_cadence() -> None:
    watch = [UpdateRatio(every_n_steps=4), FullLoss(every_n_steps=4)]
    trainer = trainer_of(BatchLoader(data()), watch)
    trainer.fit(7)
    trainer.fit(12)
    for monitor in watch:
        assert [record["step"] for record in monitor.records] == [4, 8, 12]


# ── resuming ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.few(1)
@pytest.mark.parametrize("stop", [3, 4, 5, 9])
def test_a_run_that_is_taken_up_twice_has_the_records_of_one_left_alone(stop: int) -> None:
    def watched() -> tuple[list[Callback], Trainer]:
        watch = all_of_them(5)
        return watch, trainer_of(MiniBatchLoader(data(), 5), watch)

    alone, trainer = watched()
    trainer.fit(4)
    for times in (1, 2):
        state = None
        for _ in range(times):
            watch, first = watched()
            if state is not None:
                first.load_state_dict(state)

            class Stop(Callback):
                every_n_steps = 1
                at = stop if state is None else stop + 3

                def on_safe_point(self, trainer: Trainer) -> None:
                    if trainer.progress.step == self.at:
                        trainer.stop("test")

            first.callbacks.append(Stop())
            first.fit(4)
            state = first.state_dict()
        watch, second = watched()
        second.load_state_dict(state)
        second.fit(4)
        for resumed, undisturbed in zip(watch, alone, strict=True):
            assert resumed.records == undisturbed.records
            assert resumed.report() == undisturbed.report()


@pytest.mark.parametrize(
    "state",
    [
        {"records": [{"step": -1, "epoch": 1, "sharpness": 1.0}], "vector": None},
        {"records": [{"step": 1, "epoch": 1, "sharpness": "1"}], "vector": None},
        {"records": [{"step": 1, "sharpness": 1.0}], "vector": None},
        {"records": [{"step": 1, "epoch": 1, 3: 1.0}], "vector": None},
        {"records": [], "vector": torch.tensor([1.0, math.nan])},
        {"records": [], "vector": torch.ones(2, 2)},
        {"records": [], "vector": 3.0},
        {"records": 3, "vector": None},
        {"vector": None},
    ],
)
def test_a_state_that_is_none_is_refused(state) -> None:
    watch = SharpnessMonitor()
    with pytest.raises((ValueError, LookupError, TypeError)):
        watch.load_state_dict(state)
    assert watch.records == []


# ── small and large ─────────────────────────────────────────────────────────────────────────


def test_one_sample_and_one_epoch() -> None:
    watch = [kind(every_n_steps=1) for kind in KINDS if kind is not NoiseScale]
    trainer_of(SampleLoader(data(1)), watch).fit(1)
    assert all(len(monitor.records) == 1 for monitor in watch)
    with pytest.raises(DataError, match=r"^noise_scale: needs two groups of 1 samples, and there"):
        trainer_of(SampleLoader(data(1)), [NoiseScale()]).fit(1)


def test_a_noise_scale_of_all_samples_is_that_of_the_function() -> None:
    from gdtrain.analysis.noise_scale import gradient_noise

    watch = NoiseScale(every_n_epochs=1, num_samples=1000, batch_size=1)
    trainer = trainer_of(BatchLoader(data()), [watch])
    history = trainer.fit(1)
    noise = gradient_noise(trainer)
    assert watch.records[-1]["covariance_trace"] == pytest.approx(noise.covariance_trace, rel=1e-10)
    assert watch.records[-1]["noise_scale"] == pytest.approx(noise.scale, rel=1e-9)
    assert history.critical_batch_size == [noise.critical_batch_size]
