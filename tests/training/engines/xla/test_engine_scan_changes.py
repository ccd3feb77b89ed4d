"""Engine scan beside a loop written by hand: whatever changes in mid-run, or in forward.

It ends where the loop ends, up to rounding, or refuses by name before any update.
"""

import copy
import logging
import random
import sys
import time

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from gdtrain import BatchLoader, Callback, MiniBatchLoader, Trainer
from gdtrain.errors import ConfigError
from gdtrain.training.engines import selection
from gdtrain.training.engines.capturing.eager_pass import EagerPass
from gdtrain.training.engines.capturing.python_state import PythonState

pytest.importorskip("jax")

ROWS, SIZE, EPOCHS = 24, 8, 3
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
LR = 0.1


def data(dtype=torch.float64):
    draw = torch.Generator().manual_seed(1)
    return (
        torch.randn(ROWS, 3, generator=draw, dtype=dtype),
        torch.randn(ROWS, 1, generator=draw, dtype=dtype),
    )


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(3, 4), nn.Linear(4, 1)
        self.temperature = 1.0
        self.shift = torch.zeros(1, dtype=torch.float64)
        self.activation = torch.tanh

    def forward(self, x):
        return self.head(self.activation(self.body(x) / self.temperature)) + self.shift


def mean_square(model, x, y, step):
    return F.mse_loss(model(x), y)


class Own(Trainer):
    """A trainer whose loss is a function of model, inputs, targets and step."""

    def __init__(self, loss_of, *args, **options):
        super().__init__(*args, **options)
        self.loss_of = loss_of

    def compute_loss(self, batch):
        return self.loss_of(self.model, batch.inputs, batch.targets, self.step)

    def loss_weight(self, batch):
        return len(batch)


class AtEpochEnd(Callback):
    def __init__(self, change):
        super().__init__(every_n_epochs=1)
        self.change = change

    def on_epoch_end(self, trainer, record):
        self.change(record["epoch"], trainer.model, trainer.optimizer)


def nothing(*_):
    pass


def make(build, dtype=torch.float64, **settings):
    torch.manual_seed(0)
    model = build().to(dtype)
    return model, torch.optim.SGD(model.parameters(), **{"lr": LR, "momentum": 0.9, **settings})


def by_hand(model, optimizer, loss_of=mean_square, at_epoch_end=nothing, epochs=EPOCHS, clip=None):
    x, y = data(next(model.parameters()).dtype)
    step = 0
    for epoch in range(epochs):
        for inputs, targets in zip(x.split(SIZE), y.split(SIZE), strict=True):
            optimizer.zero_grad()
            loss_of(model, inputs, targets, step).backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            step += 1
        at_epoch_end(epoch + 1, model, optimizer)
    return model


def scanning(model, optimizer, loss_of=mean_square, at_epoch_end=None, order="sequential", **more):
    dtype = next(model.parameters()).dtype
    callbacks = [] if at_epoch_end is None else [AtEpochEnd(at_epoch_end)]
    options = {"engine": "scan", "device": "cpu", "callbacks": callbacks, **more}
    loader = MiniBatchLoader(data(dtype), SIZE, order=order)
    return Own(loss_of, model, None, optimizer, loader, **options)


def assert_close(got, expected):
    theirs = expected.state_dict()
    for name, value in got.state_dict().items():
        tolerance = TOLERANCE.get(value.dtype, 0)
        scale = theirs[name].double().norm() + 1e-3
        assert (value - theirs[name]).double().norm() <= tolerance * scale, name


def test_a_step_that_changes_nothing_is_looked_at_once() -> None:
    """A second pass, and a refusal where it differs, are for models that change as they run."""
    model, optimizer = make(Net)
    trainer = scanning(model, optimizer)
    batch, passes = next(iter(trainer.loader)), []

    def note(frame, event, _) -> None:
        if event == "call" and frame.f_code is Net.forward.__code__:
            passes.append(frame.f_lineno)

    before = dict(vars(trainer))
    sys.setprofile(note)
    try:
        EagerPass(trainer, batch)
    finally:
        sys.setprofile(None)
    assert len(passes) == 1
    assert vars(trainer).keys() == before.keys()


# ── what forward changes ────────────────────────────────────────────────────────────────────────


class Scaled(nn.Module):
    """Divides by a running mean; how: in which way forward writes it."""

    def __init__(self, how):
        super().__init__()
        self.layer, self.how = nn.Linear(3, 1), how
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        out = self.layer(x)
        new = 0.9 * self.scale + 0.1 * out.detach().abs().mean()
        if self.how == "assigned":
            self.scale, self.count = new, self.count + 1
        elif self.how == "in place":
            self.scale.copy_(new)
            self.count += 1
        elif self.how == "by data":
            self.scale.data, self.count.data = new, self.count.data + 1
        else:
            self.register_buffer("scale", new)
            self._buffers["count"] = self.count + 1
        return out / self.scale


class MaxNorm(nn.Module):
    """Keeps its weights within bounds, which they cross in the first steps."""

    def __init__(self, how):
        super().__init__()
        self.layer, self.how = nn.Linear(3, 1), how

    def forward(self, x):
        weight = self.layer.weight
        if self.how == "bound again":
            weight.data = torch.renorm(weight.data, p=2, dim=0, maxnorm=0.3)
        elif self.how == "data in place":
            weight.data.clamp_(-0.3, 0.3)
        else:
            with torch.no_grad():
                weight.clamp_(-0.3, 0.3)
        return self.layer(x)


class WithTeacher(nn.Module):
    """A frozen copy that follows the weights; at first the two are equal."""

    def __init__(self):
        super().__init__()
        self.student = nn.Linear(3, 1)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)

    def forward(self, x):
        for mine, theirs in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            mine.data.lerp_(theirs.data, 0.2)
        return self.student(x) + 0.5 * self.teacher(x)


class WritesToInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, x):
        return self.layer(x.mul_(0.5))


MODELS = {
    **{
        f"buffer {how}": lambda how=how: Scaled(how)
        for how in ("assigned", "in place", "by data", "registered")
    },
    **{
        f"weights {how}": lambda how=how: MaxNorm(how)
        for how in ("bound again", "data in place", "in place")
    },
    "teacher": WithTeacher,
    "BatchNorm": lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)),
}


@pytest.mark.few(3)
@pytest.mark.parametrize("name", MODELS)
def test_forward_may_write_to_parameters_and_buffers(name):
    model, optimizer = make(MODELS[name])
    scanning(model, optimizer).fit(EPOCHS)
    assert_close(model, by_hand(*make(MODELS[name])))


def test_forward_may_write_to_its_inputs_and_the_data_stay():
    def halved(model, x, y, step):
        return F.mse_loss(model(0.5 * x), y)

    model, optimizer = make(WritesToInputs)
    trainer = scanning(model, optimizer)
    trainer.fit(EPOCHS)
    expected = by_hand(*make(lambda: nn.Sequential(nn.Linear(3, 1))), loss_of=halved)
    assert_close(model.layer, expected[0])
    assert torch.equal(trainer.loader.samples.tensors[0], data()[0])


# ── what the loss may do ────────────────────────────────────────────────────────────────────────


def divided(model, x, y, step):
    early = torch.as_tensor(step < 4)
    share = torch.where(early, 0.25, 1.0) + torch.where(early, torch.as_tensor(step) * 0.125, 0.5)
    return share * mean_square(model, x, y, step) / (1 + step)


def discounted(model, x, y, step):
    return mean_square(model, x, y, step) * 0.99**step * (1 - step / 50)


def every_third(model, x, y, step):
    penalty = sum(p.square().sum() for p in model.parameters())
    return mean_square(model, x, y, step) + torch.as_tensor(step % 3 == 0) * penalty


def with_backward(model, x, y, step):
    """Adds to the gradient by itself, as a hand-written loop lets it."""
    (0.1 * model(x).square().mean()).backward()
    return mean_square(model, x, y, step)


def gradient_penalty(model, x, y, step):
    x = x.detach().requires_grad_()
    out = model(x)
    (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    return F.mse_loss(out, y) + slope.square().mean()


def in_eval_mode(model, x, y, step):
    model.eval()
    loss = F.mse_loss(model(x), y)
    model.train()
    return loss


LOSSES = [divided, discounted, every_third, with_backward, gradient_penalty, in_eval_mode]


@pytest.mark.few(1)
@pytest.mark.parametrize("loss_of", LOSSES, ids=lambda loss: loss.__name__)
def test_a_loss_may_read_the_step_and_differentiate(loss_of):
    model, optimizer = make(Net)
    scanning(model, optimizer, loss_of).fit(EPOCHS)
    assert_close(model, by_hand(*make(Net), loss_of))


def test_steps_count_on_over_blocks_and_fits():
    model, optimizer = make(Net, torch.float32)
    trainer = scanning(model, optimizer, divided, at_epoch_end=nothing)
    trainer.fit(1)
    trainer.fit(EPOCHS)
    assert_close(model, by_hand(*make(Net, torch.float32), divided))


# ── what others change in mid-run ───────────────────────────────────────────────────────────────

TEMPERATURE = {"of all": 1.0}


def anneal(epoch, model, optimizer):
    model.temperature = 1.0 + epoch


def move_tensor(epoch, model, optimizer):
    model.shift = torch.full((1,), 0.1 * epoch, dtype=torch.float64)


def write_tensor(epoch, model, optimizer):
    model.shift.add_(0.1)


def other_function(epoch, model, optimizer):
    model.activation = torch.sigmoid if epoch % 2 else torch.tanh


def other_layer(epoch, model, optimizer):
    if epoch == 1:
        model.head = nn.Sequential(model.head, nn.Softplus())


def other_method(epoch, model, optimizer):
    model.forward = lambda x: model.head(torch.relu(model.body(x)))


def bind_weights(epoch, model, optimizer):
    for parameter in model.parameters():
        parameter.data = parameter.data * 0.9


def freeze(epoch, model, optimizer):
    model.body.requires_grad_(epoch == 2)


def hold_and_drop(epoch, model, optimizer):
    """A group is split, so that one layer has settings of its own."""
    if epoch == 1:
        (group,) = optimizer.param_groups
        body = list(model.body.parameters())
        group["params"] = list(model.head.parameters())
        optimizer.add_param_group({"params": body, "lr": 0.01, "momentum": 0.0})


def settings(epoch, model, optimizer):
    for group in optimizer.param_groups:
        group.update(lr=LR / (1 + epoch), momentum=0.0 if epoch == 1 else 0.5, nesterov=epoch == 2)
        group["weight_decay"] = 0.01 * (epoch - 1)


CHANGES = [
    *(anneal, move_tensor, write_tensor, other_function, other_layer, other_method),
    *(bind_weights, freeze, hold_and_drop, settings),
]


@pytest.mark.few(1)
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_changes_at_the_end_of_an_epoch(change):
    model, optimizer = make(Net)
    scanning(model, optimizer, at_epoch_end=change).fit(EPOCHS)
    assert_close(model, by_hand(*make(Net), at_epoch_end=change))


def modes(epoch, model, optimizer):
    model[1].train(epoch == 2)


def new_momentum(epoch, model, optimizer):
    model[1].momentum = 0.5


def other_statistics(epoch, model, optimizer):
    if epoch == 1:
        model[1].running_mean = torch.ones_like(model[1].running_mean)


def other_count(epoch, model, optimizer):
    if epoch == 1:
        model[1].num_batches_tracked = torch.tensor(7)


def other_frozen_weights(epoch, model, optimizer):
    model[0].requires_grad_(False)
    if epoch == 1:
        model[0].weight = nn.Parameter(torch.zeros_like(model[0].weight), requires_grad=False)


LAYER_CHANGES = [modes, new_momentum, other_statistics, other_count, other_frozen_weights]


@pytest.mark.few(2)
@pytest.mark.parametrize("change", LAYER_CHANGES, ids=lambda change: change.__name__)
def test_changes_to_layers_of_pytorch(change):
    """Of code that is known, attributes are compared, and nothing is captured for nothing."""
    build = MODELS["BatchNorm"]
    model, optimizer = make(build)
    loader = MiniBatchLoader(data(), SIZE, order="sequential")
    options = {"engine": "scan", "device": "cpu", "callbacks": [AtEpochEnd(change)]}
    Trainer(model, nn.MSELoss(), optimizer, loader, **options).fit(EPOCHS)
    assert_close(model, by_hand(*make(build), at_epoch_end=change))


@pytest.mark.long
def test_variables_of_a_loss_that_others_change():
    state, factors = {"power": 2.0}, [1.0]
    scale = 1.0

    def loss_of(model, x, y, step):
        error = (model(x) - y).abs() ** state["power"] * factors[0]
        return (scale * TEMPERATURE["of all"] * error).mean()

    def change(epoch, model, optimizer):
        nonlocal scale
        state["power"], factors[0], scale = 2.0 + 0.1 * epoch, 1.0 + epoch, 1.0 - 0.1 * epoch
        TEMPERATURE["of all"] = 1.0 + 0.1 * epoch

    def start():
        nonlocal scale
        state["power"], factors[0], scale, TEMPERATURE["of all"] = 2.0, 1.0, 1.0, 1.0

    model, optimizer = make(Net)
    start()
    scanning(model, optimizer, loss_of, at_epoch_end=change).fit(EPOCHS)
    start()
    assert_close(model, by_hand(*make(Net), loss_of, change))


def test_changes_of_the_trainer_itself():
    class Clip(Callback):
        def on_epoch_start(self, trainer):
            if trainer.progress.epoch == 1:
                trainer.clip_grad_norm = 0.05

    model, optimizer = make(Net)
    scanning(model, optimizer, callbacks=[Clip()]).fit(2)
    expected, theirs = make(Net)
    by_hand(expected, theirs, epochs=1)
    assert_close(model, by_hand(expected, theirs, epochs=1, clip=0.05))


@pytest.mark.long
def test_changes_by_an_order_that_is_asked_and_between_two_fits():
    model, optimizer = make(Net)

    def order(epoch):
        model.temperature = 1.0 + epoch
        return torch.arange(ROWS)

    trainer = scanning(model, optimizer, order=order)
    trainer.fit(2)
    model.shift = torch.ones(1, dtype=torch.float64)
    trainer.fit(EPOCHS)

    def change(epoch, model, optimizer):
        model.temperature = 1.0 + epoch
        if epoch == 2:
            model.shift = torch.ones(1, dtype=torch.float64)

    assert_close(model, by_hand(*make(Net), at_epoch_end=change))


def test_an_order_is_asked_behind_the_start_of_the_fit():
    """As by the eager engine: a callback may set up there what the order draws from."""
    calls = []

    class Starts(Callback):
        def on_fit_start(self, trainer):
            calls.append("fit")

    def order(epoch):
        calls.append(epoch)
        return torch.arange(ROWS).flip(0)

    model, optimizer = make(Net)
    scanning(model, optimizer, order=order, callbacks=[Starts()]).fit(2)
    assert calls == ["fit", 0, 1]


def test_a_model_that_validation_changes():
    class Adapting(Net):
        def forward(self, x):
            if not self.training:
                self.temperature += 1.0
            return super().forward(x)

    def change(epoch, model, optimizer):
        model.temperature = 1.0 + epoch

    model, optimizer = make(Adapting)
    scanning(model, optimizer, validation=BatchLoader(data())).fit(EPOCHS)
    assert_close(model, by_hand(*make(Net), at_epoch_end=change))


def test_looks_that_change_nothing_cost_no_capture(nothing_compiled, monkeypatch):
    from gdtrain.training.engines.xla import compiled_step

    captures = []
    capture = compiled_step.capture
    monkeypatch.setattr(
        compiled_step, "capture", lambda *a, **k: captures.append(1) or capture(*a, **k)
    )
    model, optimizer = make(lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)))
    loader = MiniBatchLoader(data(), SIZE, order="sequential")
    options = {"engine": "scan", "device": "cpu", "callbacks": [AtEpochEnd(nothing)]}
    trainer = Trainer(model, nn.MSELoss(), optimizer, loader, **options)
    trainer.fit(EPOCHS)
    assert len(captures) == 1


class Masked(Net):
    """Makes a new tensor in each pass."""

    def __init__(self, mask):
        super().__init__()
        self.mask = mask

    def forward(self, x):
        return super().forward(x) * torch.from_numpy(self.mask()).mean()


@pytest.mark.few(1)
@pytest.mark.parametrize(("size", "traces"), [(9, 1), (2000, 2)])
def test_a_step_is_traced_once_where_a_pass_can_tell_that_it_stays(size, traces, monkeypatch):
    from gdtrain.training.engines.capturing import capture

    traced, trace = [], capture._trace
    monkeypatch.setattr(capture, "_trace", lambda *a: traced.append(1) or trace(*a))
    model, optimizer = make(lambda: Masked(lambda: np.full(size, 0.5)))
    scanning(model, optimizer).fit(1)
    assert len(traced) == traces


@pytest.mark.few(1)
@pytest.mark.parametrize("size", [9, 2000])
def test_numbers_from_elsewhere_that_change_are_refused_however_many(size):
    model, optimizer = make(lambda: Masked(lambda: np.random.default_rng().random(size)))
    assert_refused(model, scanning(model, optimizer), "changes from one step to the next")


def test_a_model_that_keeps_the_rate_keeps_no_other_one():
    """A capture looks what the step would be at another rate."""
    kept = {"rate": LR}

    def loss_of(model, x, y, step):
        kept["rate"] = optimizer.param_groups[0]["lr"]
        return F.mse_loss(model(x), y)

    model, optimizer = make(Net)
    scanning(model, optimizer, loss_of).fit(1)
    assert kept == {"rate": LR}


# ── what is refused ─────────────────────────────────────────────────────────────────────────────

CALLS = {"n": 0}
COUNT = 0


class Counting(Net):
    def __init__(self, how):
        super().__init__()
        self.how, self.calls, self.seen = how, 0, []
        self.average = torch.zeros(1, dtype=torch.float64)
        self.draws = np.random.default_rng(0)

    def forward(self, x):
        global COUNT
        out = super().forward(x)
        if self.how == "attribute":
            self.calls += 1
        elif self.how == "list":
            self.seen.append(out.detach())
        elif self.how == "global":
            COUNT += 1
        elif self.how == "item of a global":
            CALLS["n"] += 1
        elif self.how == "class":
            type(self).total = getattr(type(self), "total", 0) + 1
        elif self.how == "tensor":
            self.average.mul_(0.9)
        elif self.how == "tensor bound again":
            self.average = 0.9 * self.average + out.detach().mean()
        elif self.how == "generator":
            out = out * self.draws.uniform()
        elif self.how == "Python's generator":
            out = out * random.random()
        elif self.how == "clock":
            out = out * (1 + time.perf_counter())
        elif self.how == "new parameter":
            self.head.weight = nn.Parameter(0.9 * self.head.weight)
        elif self.how == "mode":
            self.head.train(not self.head.training)
        elif self.how == "branch" and out.mean() > 0:
            out = -out
        elif self.how == "number":
            out = out * float(out.detach().mean())
        return out


REFUSED = {
    "attribute": "model.calls",
    "list": "model.seen",
    "global": "COUNT",
    "item of a global": "CALLS",
    "class": "Counting.total",
    "tensor": "model.average",
    "tensor bound again": "model.average",
    "generator": "model.draws",
    "Python's generator": "Python's generator",
    "clock": "changes from one step to the next",
    "new parameter": "head.weight",
    "mode": "model.head.training",
    "branch": "in forward, line",
    "number": "in forward, line",
}


def assert_refused(model, trainer, reason):
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ConfigError) as caught:
        trainer.fit(1)
    assert str(caught.value).startswith("engine: scan can't run this: ")
    assert reason in str(caught.value)
    assert trainer.progress.step == 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.few(5)
@pytest.mark.parametrize("how", REFUSED)
def test_a_model_that_changes_what_a_graph_has_as_constants_is_refused(how):
    model, optimizer = make(lambda: Counting(how))
    assert_refused(model, scanning(model, optimizer), REFUSED[how])
    assert (model.calls, model.seen, CALLS, COUNT) == (0, [], {"n": 0}, 0)


class Growing(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.layer, self.how = nn.Linear(3, 1), how
        self.register_buffer("seen", torch.zeros(1))

    @torch.no_grad()
    def forward_buffer(self, x):
        if self.how == "assign":
            self.seen = torch.cat([self.seen, x[:, 0]])
        elif self.how == "resize":
            self.seen.resize_(self.seen.numel() + 1).fill_(float(x.sum()))
        elif self.how == "dtype":
            self.seen = self.seen.float()
        else:
            self.register_buffer("more", x.mean())

    def forward(self, x):
        self.forward_buffer(x)
        return self.layer(x) + self.seen.mean()


@pytest.mark.parametrize("how", ["assign", "resize", "dtype", "new"])
def test_buffers_of_other_forms_are_refused(how):
    model, optimizer = make(lambda: Growing(how))
    assert_refused(model, scanning(model, optimizer), "more" if how == "new" else "seen")
    assert [name for name, _ in model.named_buffers()] == ["seen"]


def of_trainer(read):
    """A loss that reads something of its trainer."""

    def build(model, optimizer):
        trainer = scanning(model, optimizer, lambda m, x, y, step: F.mse_loss(m(x), y))
        plain = trainer.loss_of
        trainer.loss_of = lambda m, x, y, step: plain(m, x, y, step) * read(trainer, step)
        return trainer

    return build


READS = {
    "progress.step": lambda trainer, step: 1 / (1 + trainer.progress.step),
    "progress.epoch": lambda trainer, step: 0.5**trainer.progress.epoch,
    "history": lambda trainer, step: 1 + len(trainer.history),
    "changes from one step to the next": lambda t, _: 1 + t.optimizer.param_groups[0]["lr"],
    "line": lambda trainer, step: 2.0 if step % 2 else 1.0,
}


@pytest.mark.parametrize("reason", READS)
def test_a_loss_that_reads_what_updates_move_is_refused(reason):
    model, optimizer = make(Net)
    assert_refused(model, of_trainer(READS[reason])(model, optimizer), reason)


def test_a_loss_that_holds_parameters_of_the_model_is_refused():
    model, optimizer = make(Net)
    held = list(model.parameters())

    def decayed(model, x, y, step):
        return F.mse_loss(model(x), y) + sum(p.square().sum() for p in held)

    assert_refused(model, scanning(model, optimizer, decayed), "body.weight is read through")


def test_a_schedule_that_reads_counters_is_refused():
    model, optimizer = make(Net)
    counters = []
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda t: 1 / (1 + counters[0].step) if counters else 1.0
    )
    trainer = scanning(model, optimizer, scheduler=schedule, scheduler_per="step")
    counters.append(trainer.progress)
    assert_refused(model, trainer, "progress.step")
    assert schedule.last_epoch == 0


class Hooks(Callback):
    """Adds, at the end of an epoch, what no compiled engine can run."""

    def on_epoch_end(self, trainer, record):
        if record["epoch"] == 1:
            trainer.model[0].register_forward_hook(lambda layer, inputs, output: 0.5 * output)


def with_hooks(epoch, model, optimizer):
    if epoch == 1:
        model[0].register_forward_hook(lambda layer, inputs, output: 0.5 * output)


def small():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def test_what_comes_in_mid_run_and_can_not_be_captured_is_refused_then():
    model, optimizer = make(small)
    loader = MiniBatchLoader(data(), SIZE, order="sequential")
    options = {"engine": "scan", "device": "cpu", "callbacks": [Hooks()]}
    trainer = Trainer(model, nn.MSELoss(), optimizer, loader, **options)
    with pytest.raises(ConfigError) as caught:
        trainer.fit(EPOCHS)
    assert str(caught.value) == (
        "engine: scan can't run this: layer '0' has hooks, which look at every pass; use eager"
    )
    assert trainer.progress.step == ROWS // SIZE
    assert_close(model, by_hand(*make(small), epochs=1))


def test_auto_goes_on_eagerly_with_a_note(caplog):
    model, optimizer = make(small)
    loader = MiniBatchLoader(data(), SIZE, order="sequential")
    trainer = Trainer(
        model, nn.MSELoss(), optimizer, loader, device="cpu", callbacks=[Hooks()], engine="auto"
    )
    trainer.choice.keep("scan")  # as a run does that goes on: this one is too short to be chosen
    trainer.choice.settle(EPOCHS)
    assert trainer.engine.name == "scan"
    with caplog.at_level(logging.WARNING, "gdtrain"):
        trainer.fit(EPOCHS)
    notes = [record.getMessage() for record in caplog.records if record.name == "gdtrain"]
    assert notes == [
        "engine: eager, since scan can't run this: layer '0' has hooks, which look at every pass"
    ]
    assert trainer.engine.name == trainer.choice.name == "eager"
    assert_close(model, by_hand(*make(small), at_epoch_end=with_hooks))


# ── and neighbours ──────────────────────────────────────────────────────────────────────────────


class Cached(nn.Module):
    """Makes a mask in its first pass, and for each size of batch a scale."""

    def __init__(self):
        super().__init__()
        self.layer, self.mask, self.scales = nn.Linear(3, 1), None, {}

    def forward(self, x):
        if self.mask is None:
            self.mask = torch.tensor([1.0, 0.0, 1.0], dtype=x.dtype)
        if len(x) not in self.scales:
            self.scales[len(x)] = 1 / len(x)
        return self.layer(x * self.mask) * self.scales[len(x)]


def test_what_a_model_makes_once_and_keeps_is_no_change():
    model, optimizer = make(Cached)
    scanning(model, optimizer).fit(EPOCHS)
    assert_close(model, by_hand(*make(Cached)))


class InitialisedByData(nn.Module):
    """Sets its weights by the first batch, as ActNorm does."""

    def __init__(self):
        super().__init__()
        self.layer, self.is_set = nn.Linear(3, 1), False

    def forward(self, x):
        if not self.is_set:
            self.layer.weight.data.copy_(x[:1])
            self.is_set = True
        return self.layer(x)


class Tied(nn.Module):
    """Two parameters in the same memory."""

    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Linear(3, 3), nn.Linear(3, 3)
        self.other.weight.data = self.one.weight.data

    def forward(self, x):
        return self.other(torch.tanh(self.one(x))).sum(1, keepdim=True)


class Sparse(nn.Module):
    def __init__(self):
        super().__init__()
        self.rows = nn.Embedding(4, 1, sparse=True)

    def forward(self, x):
        return self.rows((x[:, 0] > 0).long())


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (InitialisedByData, "model.is_set"),
        (Tied, "share memory"),
        (Sparse, "rows.weight is sparse"),
    ],
)
def test_other_models_that_a_graph_can_not_follow(build, reason):
    model, optimizer = make(build, momentum=0.0)
    if build is Tied:
        model.other.weight.data = model.one.weight.data
    assert_refused(model, scanning(model, optimizer), reason)


def test_a_schedule_that_looks_at_the_model():
    """By the epoch it sees the weights as they are; by the step it is refused."""

    def schedule(model, optimizer):
        return torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda t: 1 / (1 + float(model.head.weight.detach().norm()))
        )

    model, optimizer = make(Net)
    scanning(model, optimizer, scheduler=schedule(model, optimizer)).fit(EPOCHS)
    expected, theirs = make(Net)
    by_epoch = schedule(expected, theirs)
    by_hand(expected, theirs, at_epoch_end=lambda *_: by_epoch.step())
    assert_close(model, expected)
    model, optimizer = make(Net)
    options = {"scheduler": schedule(model, optimizer), "scheduler_per": "step"}
    with pytest.raises(ConfigError, match="the schedule of every step may look at the model"):
        scanning(model, optimizer, **options).fit(1)


def test_a_callback_that_asks_the_model_when_it_is_due():
    class Due(Callback):
        seen = ()

        def is_due(self, step):
            self.seen = (*self.seen, float(self.model.head.bias.detach()))
            return False

        def on_safe_point(self, trainer):
            raise AssertionError

    def watch(engine):
        due = Due(every_n_steps=1)
        model, optimizer = make(Net)
        due.model = model
        scanning(model, optimizer, engine=engine, callbacks=[due]).fit(1)
        return due.seen

    assert watch("scan") == pytest.approx(watch("eager"), rel=1e-10)


def test_an_error_in_mid_block_leaves_counters_and_weights_in_step():
    """A schedule that fails at its fifth update; ragged ends make parts of a block."""
    x, y = data()
    rows = 20  # batches of 8, 8 and 4

    def factor(t):
        if t == 5 and not fixed:
            raise RuntimeError("no rate")
        return 1 / (1 + t)

    def build():
        model, optimizer = make(Net)
        return model, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)

    fixed = False
    model, optimizer, schedule = build()
    loader = MiniBatchLoader((x[:rows], y[:rows]), 8, order="sequential")
    trainer = Own(
        mean_square,
        model,
        None,
        optimizer,
        loader,
        engine="scan",
        device="cpu",
        scheduler=schedule,
        scheduler_per="step",
    )
    with pytest.raises(RuntimeError, match="no rate"):
        trainer.fit(2)
    assert trainer.progress.step == schedule.last_epoch
    made = trainer.progress.step
    assert 3 <= made < 5
    fixed = True
    trainer.fit(2)
    expected, theirs, by_step = build()
    for _ in range(2):
        for inputs, targets in zip(x[:rows].split(8), y[:rows].split(8), strict=True):
            theirs.zero_grad()
            F.mse_loss(expected(inputs), targets).backward()
            theirs.step()
            by_step.step()
    assert_close(model, expected)


def test_an_assertion_does_not_lead_to_the_test_runner() -> None:
    def forward(x: torch.Tensor) -> torch.Tensor:
        assert x.ndim == 2, "as pytest rewrites it, it calls pytest's own functions"
        return x

    reached = PythonState({"forward": forward}).reached
    assert forward in reached
    assert [found for found in reached if "pytest" in str(getattr(found, "__module__", ""))] == []


class LargerProducts(TorchFunctionMode):
    """Each linear layer's output is 1.1 times as large."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        return 1.1 * result if function is F.linear else result


class LargerKernels(TorchDispatchMode):
    """The same, one level below."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        return 1.1 * result if function is torch.ops.aten.addmm.default else result


@pytest.mark.parametrize("mode", [LargerProducts, LargerKernels])
@pytest.mark.parametrize("engine", ["scan", "eager"])
def test_a_mode_that_sees_every_call(mode, engine):
    """A captured step would have what it computed once, or nothing of it: eager follows it."""
    x, y = data()

    def made():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
        return model, torch.optim.SGD(model.parameters(), lr=LR)

    model, optimizer = made()
    loader = BatchLoader((x, y))
    trainer = Trainer(model, nn.MSELoss(), optimizer, loader, device="cpu", engine=engine)
    if engine == "scan":
        with mode(), pytest.raises(ConfigError, match="Mode is active"):
            trainer.fit(EPOCHS)
        assert trainer.step == 0
        return
    with mode():
        trainer.fit(EPOCHS)
        hand, optimizer = made()
        for _ in range(EPOCHS):
            optimizer.zero_grad()
            F.mse_loss(hand(x), y).backward()
            optimizer.step()
    assert all(map(torch.equal, model.parameters(), hand.parameters()))


def test_the_mode_that_sets_the_default_device_is_no_obstacle():
    torch.manual_seed(0)
    model = nn.Linear(3, 1).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    with torch.device("cpu"):
        trainer = Trainer(
            *(model, nn.MSELoss(), optimizer, BatchLoader(data())), device="cpu", engine="scan"
        )
        trainer.fit(EPOCHS)
    assert trainer.step == EPOCHS


def norm_of(model):
    norms = [p.grad.norm() for p in model.parameters() if p.grad is not None]
    return float(torch.stack(norms).norm()) if norms else 0.0


class Norms(Callback):
    """The norm of the gradient; of none, 0."""

    every_n_steps = 3

    def __init__(self):
        super().__init__()
        self.found = []

    def on_safe_point(self, trainer):
        self.found.append(norm_of(trainer.model))


def closing_over(function):
    class Closing(Norms):
        def on_safe_point(self, trainer):
            self.found.append(function(trainer.model))

    return Closing


class OfTheWholeSet(Norms):
    """What it reads it has computed: that is as good under each engine."""

    def on_safe_point(self, trainer):
        trainer.batch_gradient(next(trainer.read(BatchLoader(data()))))
        super().on_safe_point(trainer)


def with_norms(kind, engine):
    torch.manual_seed(0)
    model = nn.Linear(3, 1).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    loader = MiniBatchLoader(data(), SIZE)
    norms = kind()
    trainer = Trainer(
        *(model, nn.MSELoss(), optimizer, loader), callbacks=[norms], device="cpu", engine=engine
    )
    trainer.fit(EPOCHS)
    return norms.found


@pytest.mark.parametrize("kind", [Norms, closing_over(lambda model: norm_of(model))])
def test_a_callback_that_reads_the_gradient_of_the_update_is_refused(kind):
    """The gradients of a compiled step stay in it, and a callback would read none, silently."""
    with pytest.raises(ConfigError, match=r"reads \.grad"):
        with_norms(kind, "scan")
    assert all(norm > 0 for norm in with_norms(kind, "eager"))


def test_a_callback_that_computes_the_gradient_that_it_reads_runs():
    compiled, eager = (with_norms(OfTheWholeSet, engine) for engine in ("scan", "eager"))
    assert compiled == pytest.approx(eager, rel=1e-10)


def test_auto_is_eager_for_a_callback_that_reads_the_gradient(monkeypatch):
    monkeypatch.setattr(selection, "MIN_UPDATES", 1)
    monkeypatch.setattr(selection, "MIN_BLOCK", 1)
    assert with_norms(Norms, "auto") == with_norms(Norms, "eager")
