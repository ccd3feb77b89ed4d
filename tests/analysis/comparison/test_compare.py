"""``gdtrain.compare`` agrees with closed forms, loops written by hand and PyTorch's profiler."""

import json
import math
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from gdtrain import (
    SAGA,
    SVRG,
    BatchLoader,
    BatchSizes,
    Callback,
    MiniBatchLoader,
    PhasedLoader,
    SampleLoader,
    Trainer,
    compare,
)
from gdtrain.analysis.comparison.peak_memory import step_memory
from gdtrain.analysis.comparison.recorder import Budget, LookSchedule
from gdtrain.errors import ConfigError, DataError, ModelError
from gdtrain.training.engines import selection

N = 7
draw = torch.Generator().manual_seed(0)
POINTS = torch.randn(N, 1, generator=draw, dtype=torch.float64)
X = torch.randn(N, 4, generator=draw)
LABELS = torch.randint(3, (N,), generator=draw)
START = 3.0


class Place(nn.Module):
    """One weight θ, whose output is θ for every sample: f_i = ½(θ - x_i)² under half squares."""

    def __init__(self):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([START], dtype=torch.float64))

    def forward(self, x):
        return self.theta.expand(len(x), 1)


def half_squares(output, targets):
    return 0.5 * (output - targets).square().mean()


def quadratic(kind=BatchLoader, lr=0.1, budget=None, optimizer=torch.optim.SGD, **options):
    model = Place()
    loader = kind((torch.zeros(N, 1, dtype=torch.float64), POINTS), seed=0, **options)
    made = optimizer(model.parameters(), lr=lr)
    return Trainer(model, half_squares, made, loader, device="cpu")


def network(kind=BatchLoader, lr=0.1, dropout=0.0, seed=0, inputs=X, width=5, **options):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Dropout(dropout), nn.Linear(width, 3))
    made = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    loader = kind((inputs, LABELS[: len(inputs)]), seed=0, **options)
    return Trainer(model, nn.CrossEntropyLoss(), made, loader, device="cpu")


minibatch = partial(quadratic, MiniBatchLoader, batch_size=3)
sample = partial(quadratic, SampleLoader)


def full(theta):
    return 0.5 * np.square(theta - POINTS.numpy()).mean()


def by_hand(trainer, updates, lr):
    """θ before and after each update, and each update's own loss, in plain numpy."""
    points, theta, places, losses, epoch = POINTS.numpy()[:, 0], START, [START], [], 0
    while len(losses) < updates:
        plan = trainer.loader.plan(epoch)
        for number in range(len(plan)):
            chosen = points[plan.batch_indices(number).numpy()]
            losses.append(0.5 * np.square(theta - chosen).mean())
            theta = theta - lr * (theta - chosen.mean())
            places.append(theta)
        epoch += 1
    return places[: updates + 1], losses[:updates]


# ── the curve, the target and stability ─────────────────────────────────────────────────────


def test_full_batch_descent_follows_the_closed_form():
    # θ_t = mean + (1 - α)^t (θ_0 - mean)
    (form,) = compare({"batch": quadratic}, epochs=30).result["forms"]
    curve, mean = form["curve"], float(POINTS.mean())
    assert curve["updates"] == list(range(31))
    expected = [full(mean + 0.9**t * (START - mean)) for t in range(31)]
    np.testing.assert_allclose(curve["full_loss"], expected, rtol=1e-12)
    np.testing.assert_allclose(curve["batch_loss"][1:], expected[:-1], rtol=1e-12)
    assert curve["batch_loss"][0] is None
    assert curve["samples"] == curve["gradient_evaluations"] == [N * t for t in range(31)]
    assert curve["seconds"] == sorted(curve["seconds"])
    assert form["stability"]["updates_judged"] == 30
    assert form["stability"]["updates_that_raised"] == 0


@pytest.mark.parametrize("make", [minibatch, sample])
def test_stability_is_that_of_a_loop_by_hand(make):
    updates, lr = 40, 0.6
    (form,) = compare({"it": partial(make, lr=lr)}, updates=updates).result["forms"]
    places, losses = by_hand(make(), updates, lr)
    truth = [full(theta) for theta in places]
    raised = sum(after > before for before, after in pairwise(truth))
    assert 0 < raised < updates
    found = form["stability"]
    assert (found["updates_judged"], found["updates_that_raised"]) == (updates, raised)
    assert found["share_that_raised"] == raised / updates
    np.testing.assert_allclose(form["curve"]["full_loss"], truth, rtol=1e-12)
    late = losses[26:]  # of updates after 2/3 of them, with the difference to the one before
    steps = np.diff(losses)[25:]
    assert len(steps) == len(late)
    assert found["loss_variance"] == pytest.approx(np.square(steps).mean() / 2, rel=1e-12)


def test_few_looks_at_many_updates_are_evenly_spread_pairs():
    (form,) = compare({"sample": partial(sample, lr=0.3)}, updates=700, looks=10).result["forms"]
    updates = form["curve"]["updates"]
    pairs = {step for number in range(10) for step in (70 * number, 70 * number + 1)}
    assert set(updates) == pairs | {1, 2, 4, 8, 16, 32, 64, 128, 256, 512} | {700}
    assert form["stability"]["updates_judged"] == 10
    places, _ = by_hand(sample(), 700, 0.3)
    truth = [full(places[step]) for step in updates]
    np.testing.assert_allclose(form["curve"]["full_loss"], truth, rtol=1e-10)
    raised = sum(full(places[70 * n + 1]) > full(places[70 * n]) for n in range(10))
    assert form["stability"]["updates_that_raised"] == raised


def test_the_variance_is_that_of_white_noise_about_a_trend():
    # From θ = mean with α so small that θ stays: losses are ½(θ - x_i)² of drawn samples alone.
    noise = partial(quadratic, SampleLoader, lr=1e-9, order="replacement")
    (form,) = compare({"noise": noise}, updates=6_000, looks=5).result["forms"]
    exact = (0.5 * np.square(START - POINTS.numpy())).var()
    assert form["stability"]["loss_variance"] == pytest.approx(exact, rel=0.1)


def test_the_target_is_the_largest_final_loss_and_all_reach_it():
    forms = {"slow": partial(quadratic, lr=0.01), "fast": partial(quadratic, lr=0.5)}
    result = compare(forms, epochs=20).result
    slow, fast = result["forms"]
    assert result["target"] == {"full_loss": slow["final"]["full_loss"], "given": False}
    assert slow["to_target"]["updates"] == 20
    mean, start = float(POINTS.mean()), START
    first = next(
        t for t in range(21) if full(mean + 0.5**t * (start - mean)) <= slow["final"]["full_loss"]
    )
    assert fast["to_target"]["updates"] == first
    assert fast["to_target"]["gradient_evaluations"] == N * first
    assert fast["to_target"]["seconds"] == fast["curve"]["seconds"][first]
    said = result["when_to_use"]
    assert said.startswith("In one run of each, the best was fast for speed (a full loss of ")
    assert said.endswith("; with 1 seed this is not conclusive, use at least 5.")
    given = compare(forms, epochs=20, target_loss=1e-9).result
    assert given["target"] == {"full_loss": 1e-9, "given": True}
    assert [form["to_target"] for form in given["forms"]] == [None, None]


# ── budgets ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("budget", "updates", "samples"),
    [
        ({"epochs": 2}, 6, 14),
        ({"updates": 5}, 5, 13),
        ({"updates": 3}, 3, 7),
        ({"samples": 1}, 1, 3),
        ({"samples": 7}, 3, 7),
        ({"samples": 8}, 4, 10),
        ({"samples": 15}, 7, 17),
    ],
)
def test_each_budget_buys_exactly_its_updates(budget, updates, samples):
    (form,) = compare({"it": minibatch}, **budget).result["forms"]
    assert (form["updates"], form["samples"], form["status"]) == (updates, samples, "done")


def test_a_budget_of_seconds_is_one_of_updates_alone():
    class SlowLook(Trainer):
        def evaluate(self, loader=None):
            torch.randn(400, 400) @ torch.randn(400, 400)
            return super().evaluate(loader)

    def make():
        plain = sample()
        return SlowLook(plain.model, half_squares, plain.optimizer, plain.loader, device="cpu")

    (form,) = compare({"it": make}, seconds=0.4, looks=20).result["forms"]
    assert 0.4 <= form["seconds"] < 5  # a block takes a tenth of a second, on a busy machine more
    assert form["curve"]["seconds"][-1] == form["seconds"]
    assert form["stability"]["updates_judged"] >= 8
    assert form["status"] == "done"


def test_the_schedule_of_looks_goes_forward_and_ends_with_the_run():
    for updates in (1, 2, 3, 99, 100, 101, 12_345):
        schedule, step, steps = LookSchedule(updates, 0.0, 10), 0, []
        while step < updates:
            following = schedule.next(step, 1.0)
            assert following > step
            step = following
            steps.append(step)
        assert steps[-1] == updates
        assert len(steps) <= 20 + updates.bit_length()


def test_short_budgets_are_a_quarter_or_all():
    loader = sample().loader
    assert Budget("epochs", 60).short(loader) == Budget("epochs", 15)  # of 105 updates
    assert Budget("epochs", 56).short(loader) == Budget("epochs", 56)  # a quarter would be 98
    assert Budget("samples", 401).short(loader) == Budget("samples", 101)
    assert Budget("seconds", 2.0).short(loader) == Budget("seconds", 0.5)
    assert str(Budget("epochs", 1)) == "1 epoch"
    assert str(Budget("updates", 1200)) == "1,200 updates"


# ── memory ──────────────────────────────────────────────────────────────────────────────────


def allocated(trainer):
    """The peak that PyTorch's profiler sees its allocator reach in one more update."""
    trainer.fit(1)
    trainer.optimizer.zero_grad(set_to_none=True)
    (batch,) = list(trainer.read(trainer.loader))
    batch = type(batch)(batch.inputs.clone(), batch.targets.clone(), batch.indices)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as measured:
        trainer.train_step(batch)
    events = measured.profiler.kineto_results.events()
    memory = [event for event in events if event.name() == "[memory]"]
    memory.sort(key=lambda event: event.start_ns())
    return int(np.cumsum([event.nbytes() for event in memory]).max())


@pytest.mark.parametrize("size", [1, 2, 7])
def test_memory_is_what_the_allocator_is_asked_for(size):
    make = partial(network, inputs=X[:size], width=300, dropout=0.5)
    found = step_memory(make())
    assert found is not None
    # What differs is what operators allocate inside of themselves, and tensors of a few bytes.
    assert found.step == pytest.approx(allocated(make()), rel=0.02)
    parameters = 4 * 300 + 300 + 300 * 3 + 3
    assert found.held == 2 * 4 * parameters  # and the momentum


def test_memory_grows_with_the_batch_and_leaves_the_trainer_alone():
    trainer = network(MiniBatchLoader, batch_size=3, dropout=0.5)
    before, rng = trainer.state_dict(), torch.get_rng_state()
    found = step_memory(trainer)
    after = trainer.state_dict()
    assert torch.equal(rng, torch.get_rng_state())
    assert after["progress"] == before["progress"]
    assert after["optimizer"]["state"] == before["optimizer"]["state"] == {}
    assert all(torch.equal(after["model"][k], v) for k, v in before["model"].items())
    assert all(p.grad is None for p in trainer.model.parameters())
    one = step_memory(network(SampleLoader, dropout=0.5))
    everything = step_memory(network(BatchLoader, dropout=0.5))
    assert one.step < found.step < everything.step
    assert one.held == found.held == everything.held


# ── what must be the same, and what may go wrong ────────────────────────────────────────────


def test_the_start_is_the_same_and_said():
    start = compare({"a": network, "b": partial(network, SampleLoader)}, epochs=1).result["start"]
    assert start["parameters"] == 4 * 5 + 5 + 5 * 3 + 3
    assert len(start["weights_sha256"]) == 64
    again = compare({"c": partial(network, lr=0.3)}, epochs=1).result["start"]
    assert again == start | {"of": "c"}
    other = compare({"c": partial(network, seed=1)}, epochs=1).result["start"]
    assert other["weights_sha256"] != start["weights_sha256"]
    assert other["training"] == start["training"]


def test_other_weights_other_data_and_used_trainers_are_refused():
    used = quadratic()
    used.fit(1)
    cases = [
        (
            {"a": network, "b": partial(network, seed=1)},
            "compare: b starts from other weights than a; seed torch with the same number before "
            "each model is made",
        ),
        (
            {"a": network, "b": partial(network, inputs=X + 1)},
            "compare: b trains on other samples than a; give all the same",
        ),
        (
            {"a": lambda: used},
            "compare: a has trained already; make a new trainer for each call",
        ),
    ]
    for forms, said in cases:
        with pytest.raises(ModelError) as error:
            compare(forms, epochs=1)
        assert str(error.value) == said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "budget: give one of epochs, samples, updates, seconds; got none"),
        (
            {"epochs": 1, "seconds": 2.0},
            "budget: give one of epochs, samples, updates, seconds; got epochs, seconds",
        ),
        ({"epochs": 0}, "epochs: must be a whole number >= 1, got 0"),
        ({"updates": 1.5}, "updates: must be a whole number >= 1, got 1.5"),
        ({"seconds": math.inf}, "seconds: must be a number > 0, got inf"),
        ({"epochs": 1, "looks": 1}, "looks: must be >= 2, got 1"),
        ({"epochs": 1, "lr_grid": [0.1, -1]}, "lr_grid: must hold numbers > 0, got -1"),
        ({"epochs": 1, "target_loss": math.nan}, "target_loss: must be a finite number, got nan"),
    ],
)
def test_wrong_arguments_are_named(arguments, said):
    with pytest.raises(ConfigError) as error:
        compare({"a": quadratic}, **arguments)
    assert str(error.value) == said


def test_what_diverges_is_a_result():
    def wild():
        trainer = quadratic(lr=1.9)  # whose first step leads to where the loss is NaN
        trainer.loss = lambda output, y: half_squares(output, y) + 0 * (output + 1).log().mean()
        return trainer

    forms = {"wild": wild, "burst": partial(quadratic, lr=1e4), "calm": quadratic}
    compared = compare(forms, epochs=30)
    wild, burst, calm = compared.result["forms"]
    assert [form["status"] for form in (wild, burst, calm)] == ["diverged", "diverged", "done"]
    assert (wild["updates"], wild["to_target"], wild["memory"]) == (1, None, None)
    assert wild["reason"].startswith("loss is nan in epoch 2, step 2, with lr 1.9, on samples 0, ")
    assert wild["curve"]["full_loss"][1:] == [None]
    assert burst["updates"] == 1  # stopped at the look that saw it: 1e8 times the start
    assert burst["reason"].startswith("the full loss rose to ")
    assert calm["to_target"]["updates"] == 30
    said = compared.result["when_to_use"]
    assert said == (
        "On this problem, with these settings, only calm reduced the loss; wild and burst "
        "diverged: give them a smaller learning rate."
    )
    assert "diverged" in str(compared).splitlines()[1]
    text = json.dumps(compared.result, allow_nan=False)  # null where a number is not finite
    assert json.loads(text) == compared.result


def test_a_rate_is_chosen_per_form_by_the_final_loss():
    # Full-batch descent on this quadratic reaches its minimum in one update with α = 1.
    told: list[str] = []
    grid = [1.9, 0.001, 1.0, 1e30]
    result = compare({"batch": quadratic}, epochs=4, lr_grid=grid, tell=told.append).result
    (form,) = result["forms"]
    assert form["learning_rate"] == 1.0
    assert [run["learning_rate"] for run in form["tried"]] == sorted(grid)
    assert [run["status"] for run in form["tried"]] == ["done", "done", "done", "diverged"]
    mean = float(POINTS.mean())
    expected = [full(mean + (1 - lr) ** 4 * (START - mean)) for lr in (0.001, 1.0, 1.9)]
    np.testing.assert_allclose([run["full_loss"] for run in form["tried"][:3]], expected)
    assert "batch: chooses learning rate 1" in told


def test_a_form_does_not_depend_on_those_before_it():
    torch.manual_seed(5)
    dropped = partial(network, MiniBatchLoader, batch_size=3, dropout=0.5)
    alone = compare({"b": dropped}, epochs=3).result["forms"][0]["curve"]
    forms = {"a": partial(network, SampleLoader, dropout=0.5), "b": dropped}
    after = compare(forms, epochs=3).result["forms"][1]["curve"]
    trainer = dropped()
    trainer.fit(3)
    for name in ("updates", "full_loss", "batch_loss", "lr"):
        assert alone[name] == after[name]
    assert alone["full_loss"][-1] == trainer.evaluate()["loss"]  # looking has changed nothing


def test_every_gradient_of_lbfgs_is_counted():
    calls = []

    def make():
        def loss(output, targets):
            if torch.is_grad_enabled():
                calls.append(len(targets))
            return F.cross_entropy(output, targets)

        torch.manual_seed(0)
        model = nn.Linear(4, 3)
        made = torch.optim.LBFGS(model.parameters(), max_iter=4)
        return Trainer(model, loss, made, BatchLoader((X, LABELS)), device="cpu")

    (form,) = compare({"lbfgs": make}, epochs=3).result["forms"]
    trainer = make()
    calls.clear()
    trainer.fit(3)
    assert form["gradient_evaluations"] == sum(calls) > form["samples"] == 3 * N


def test_the_gradients_and_the_table_of_corrections_are_counted():
    calls = []

    def make(correction=None):
        def loss(output, targets):
            if torch.is_grad_enabled():
                calls.append(len(targets))
            return half_squares(output, targets)

        trainer = sample(lr=0.2)
        trainer.loss = loss
        trainer.callbacks += [correction()] if correction else []
        return trainer

    forms = {"plain": make, "svrg": partial(make, SVRG), "saga": partial(make, SAGA)}
    plain, svrg, saga = compare(forms, updates=40).result["forms"]
    assert plain["gradient_evaluations"] == plain["samples"] == 40
    for form, correction in ((svrg, SVRG), (saga, SAGA)):
        calls.clear()
        trainer = make(correction)
        trainer.callbacks.append(Ends(40))
        trainer.fit(6)
        assert form["gradient_evaluations"] == sum(calls) > 40
    # SAGA's table: a gradient of one weight in float64 for each sample, and their mean.
    assert saga["memory"]["held_bytes"] >= plain["memory"]["held_bytes"] + 8 * N


class Ends(Callback):
    """Stops after exactly so many updates."""

    def __init__(self, step):
        super().__init__(every_n_steps=step)

    def on_safe_point(self, trainer):
        trainer.stop("enough")


@pytest.mark.parametrize(("budget", "updates"), [({"epochs": 3}, 9), ({"updates": 8}, 8)])
def test_phases_have_their_sizes_and_their_budget(budget, updates):
    def make():
        data = (torch.zeros(N, 1, dtype=torch.float64), POINTS)
        trainer = sample()
        trainer.loader = PhasedLoader([(1, SampleLoader(data)), (None, BatchLoader(data))])
        return trainer

    (form,) = compare({"phases": make}, **budget).result["forms"]
    assert (form["updates"], form["batch_sizes"]) == (updates, [1, 7])


def test_epochs_of_other_lengths_make_the_budget_too():
    def make():
        return quadratic(MiniBatchLoader, batch_size=BatchSizes([(1, 1), (None, 4)]))

    loader = make().loader  # 7 updates in the first epoch, then 2
    assert [Budget("updates", n).epochs(loader) for n in (1, 7, 8, 9, 10, 19)] == [1, 1, 2, 2, 3, 7]
    (form,) = compare({"growing": make}, updates=19).result["forms"]
    assert (form["updates"], form["batch_sizes"]) == (19, [1, 4])
    (form,) = compare({"growing": make}, samples=17).result["forms"]
    assert (form["updates"], form["samples"]) == (10, 18)


def test_a_stop_gives_what_is_done():
    forms = {"a": quadratic, "b": quadratic, "c": quadratic}
    looks = []

    def on_look(name, spent):
        looks.append((name, spent))

    compared = compare(forms, epochs=10, on_look=on_look, should_stop=lambda: ("b", 0.5) in looks)
    assert compared.interrupted
    a, b = compared.result["forms"]
    assert (a["status"], a["updates"]) == ("done", 10)
    assert (b["status"], b["updates"]) == ("interrupted", 5)


def test_streams_are_refused():
    class Endless(torch.utils.data.IterableDataset):
        def __iter__(self):
            yield torch.zeros(4), torch.tensor(0)

    def make():
        plain = network()
        return Trainer(
            plain.model, nn.CrossEntropyLoss(), plain.optimizer, MiniBatchLoader(Endless(), 2)
        )

    with pytest.raises((ModelError, DataError), match="a stream can't be evaluated as a whole"):
        compare({"a": make}, updates=1)


def test_forms_under_auto_are_timed_under_one_engine_however_long_they_are(monkeypatch):
    pytest.importorskip("jax")
    monkeypatch.setattr(selection, "MIN_UPDATES", 5 * N)

    alone = network(SampleLoader)
    alone.choice.settle(5)
    assert alone.engine.name == "scan"
    forms = {kind.__name__: partial(network, kind) for kind in (SampleLoader, BatchLoader)}
    compared = compare(forms, epochs=5, looks=2).result["forms"]
    assert [form["engine"] for form in compared] == ["eager", "eager"]


def test_engines_agree_on_the_curve():
    pytest.importorskip("jax")

    def make(engine):
        plain = network(SampleLoader)
        made = torch.optim.SGD(plain.model.parameters(), lr=0.05)
        return Trainer(
            plain.model, nn.CrossEntropyLoss(), made, plain.loader, device="cpu", engine=engine
        )

    forms = {engine: partial(make, engine) for engine in ("eager", "scan")}
    eager, scan = compare(forms, epochs=20, looks=10).result["forms"]
    assert [eager["engine"], scan["engine"]] == ["eager", "scan"]
    assert eager["memory"] == scan["memory"]
    assert eager["curve"]["updates"] == scan["curve"]["updates"]
    np.testing.assert_allclose(eager["curve"]["full_loss"], scan["curve"]["full_loss"], rtol=1e-4)
    assert eager["stability"]["updates_that_raised"] == scan["stability"]["updates_that_raised"]
