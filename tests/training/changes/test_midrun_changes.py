"""What a program changes in mid-run counts from the next update on, as in a loop by hand."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gdtrain import BatchLoader, Callback, MiniBatchLoader, SampleLoader, Trainer

SGD, Adam = torch.optim.SGD, torch.optim.Adam
SETTINGS = {
    "plain": (SGD, {"lr": 0.1}, None),
    "momentum": (SGD, {"lr": 0.1, "momentum": 0.9}, None),
    "decay": (SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05}, None),
    "clip": (SGD, {"lr": 0.1}, 0.3),
    "adam": (Adam, {"lr": 0.01}, None),
}
settings = pytest.mark.parametrize("setting", SETTINGS)
SIZE, EPOCHS = 8, 4


def data(rows=32):
    draw = torch.Generator().manual_seed(1)
    return torch.randn(rows, 3, generator=draw), torch.randn(rows, 1, generator=draw)


class Net(nn.Module):
    """A head, a body that may be frozen, and a part that the loss does not use."""

    def __init__(self, frozen=False, unused=True):
        super().__init__()
        self.head, self.body = nn.Linear(4, 1), nn.Linear(3, 4)
        self.unused = nn.Linear(2, 2) if unused else None
        self.body.requires_grad_(not frozen)

    def forward(self, x):
        return self.head(torch.tanh(self.body(x)))


class AtEpochEnd(Callback):
    def __init__(self, change):
        super().__init__(every_n_epochs=1)
        self.change = change

    def on_epoch_end(self, trainer, record):
        self.change(record["epoch"], trainer.model, trainer.optimizer)


class AfterUpdates(Callback):
    def __init__(self, change):
        super().__init__(every_n_steps=1)
        self.change = change

    def on_safe_point(self, trainer):
        self.change(trainer.model)


def nothing(*_):
    pass


def by_hand(model, optimizer, clip=None, at_epoch_end=nothing, after_update=nothing):
    x, y = data()
    torch.manual_seed(7)
    for epoch in range(EPOCHS):
        for inputs, targets in zip(x.split(SIZE), y.split(SIZE), strict=True):
            optimizer.zero_grad()
            F.mse_loss(model(inputs), targets).backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            after_update(model)
        at_epoch_end(epoch + 1, model, optimizer)
    return model


def by_gdtrain(model, optimizer, clip=None, callbacks=(), engine="eager", **more):
    torch.manual_seed(7)
    loader = MiniBatchLoader(data(), SIZE, order="sequential")
    Trainer(
        model,
        nn.MSELoss(),
        optimizer,
        loader,
        callbacks=callbacks,
        clip_grad_norm=clip,
        engine=engine,
        device="cpu",
        **more,
    ).fit(EPOCHS)
    return model


def make(build, setting, groups=nn.Module.parameters):
    torch.manual_seed(0)
    model = build()
    optimizer, options, clip = SETTINGS[setting]
    return model, optimizer(groups(model), **options), clip


def same_bits(one, other):
    expected = other.state_dict()
    return all(torch.equal(value, expected[name]) for name, value in one.state_dict().items())


# ── parameters that come and go ─────────────────────────────────────────────────────────────────


def freeze(epoch, model, optimizer):
    if epoch == 1:
        model.body.requires_grad_(False)


def freeze_and_thaw(epoch, model, optimizer):
    model.body.requires_grad_(epoch not in (1, 2))


def thaw(epoch, model, optimizer):
    if epoch == 2:
        model.body.requires_grad_(True)


def join(epoch, model, optimizer):
    if epoch == 2:
        model.body.requires_grad_(True)
        optimizer.add_param_group({"params": list(model.body.parameters()), "lr": 0.02})


@settings
@pytest.mark.parametrize("change", [freeze, freeze_and_thaw])
@pytest.mark.parametrize("unused", [False, True])
def test_frozen_layer_stands_still(setting, change, unused):
    """A layer frozen at an epoch's end moves no more, whatever else the model holds."""
    build = lambda: Net(unused=unused)  # noqa: E731
    expected = by_hand(*make(build, setting), at_epoch_end=change)
    got = by_gdtrain(*make(build, setting), callbacks=[AtEpochEnd(change)])
    assert same_bits(got, expected)


@settings
def test_layer_unfrozen_in_mid_run_learns(setting):
    """A layer that is unfrozen, and that the optimizer has held all along, learns from then on."""
    build = lambda: Net(frozen=True)  # noqa: E731
    expected = by_hand(*make(build, setting), at_epoch_end=thaw)
    got = by_gdtrain(*make(build, setting), callbacks=[AtEpochEnd(thaw)])
    assert same_bits(got, expected)


@settings
def test_layer_added_as_a_group_learns(setting):
    """A layer that joins the optimizer by add_param_group learns from then on."""
    build = lambda: Net(frozen=True, unused=False)  # noqa: E731
    head = lambda model: model.head.parameters()  # noqa: E731
    expected = by_hand(*make(build, setting, head), at_epoch_end=join)
    got = by_gdtrain(*make(build, setting, head), callbacks=[AtEpochEnd(join)])
    assert same_bits(got, expected)


@settings
@pytest.mark.parametrize("kind", ["frozen", "empty"])
def test_group_without_a_trained_parameter(setting, kind):
    """A group of the optimizer that is frozen or empty is no obstacle."""
    build = lambda: Net(frozen=kind == "frozen", unused=False)  # noqa: E731

    def groups(model):
        still = list(model.body.parameters()) if kind == "frozen" else []
        rest = [] if kind == "frozen" else list(model.body.parameters())
        return [{"params": still, "lr": 1e-3}, {"params": [*model.head.parameters(), *rest]}]

    expected = by_hand(*make(build, setting, groups))
    assert same_bits(by_gdtrain(*make(build, setting, groups)), expected)


@settings
def test_group_frozen_in_mid_run(setting):
    """A whole group that is frozen after the first epoch stands still from then on."""
    build = lambda: Net(unused=False)  # noqa: E731

    def groups(model):
        return [
            {"params": model.body.parameters(), "lr": 0.01},
            {"params": model.head.parameters()},
        ]

    model, optimizer, clip = make(build, setting, groups)
    clip = None if clip is None else 1e9  # the order in which norms are added is not at issue here
    expected = by_hand(model, optimizer, clip, at_epoch_end=freeze)
    model, optimizer, _ = make(build, setting, groups)
    got = by_gdtrain(model, optimizer, clip, callbacks=[AtEpochEnd(freeze)])
    assert same_bits(got, expected)


# ── weights that somebody else sets ─────────────────────────────────────────────────────────────


class MaxNorm(nn.Linear):
    """Keeps its rows in the unit ball by giving the parameter other memory in each forward pass."""

    def forward(self, x):
        self.weight.data = torch.renorm(self.weight.data, p=2, dim=0, maxnorm=1.0)
        return super().forward(x)


def max_norm():
    return nn.Sequential(MaxNorm(3, 4), nn.Tanh(), nn.Linear(4, 1))


@settings
def test_data_bound_anew_in_forward(setting):
    """Updates reach the weights although forward gives ``.data`` other memory."""
    expected = by_hand(*make(max_norm, setting))
    assert same_bits(by_gdtrain(*make(max_norm, setting)), expected)


@torch.no_grad()
def clamp(model):
    for parameter in model.parameters():
        parameter.clamp_(-0.2, 0.2)


def clamp_by_binding(model):
    for parameter in model.parameters():
        parameter.data = parameter.data.clamp(-0.2, 0.2)


@settings
@pytest.mark.parametrize("project", [clamp, clamp_by_binding])
def test_projection_at_each_safe_point(setting, project):
    """A callback that projects the weights after every update makes projected descent."""
    build = lambda: Net(unused=False)  # noqa: E731
    expected = by_hand(*make(build, setting), after_update=project)
    got = by_gdtrain(*make(build, setting), callbacks=[AfterUpdates(project)])
    assert same_bits(got, expected)


# ── buffers and modes ───────────────────────────────────────────────────────────────────────────


class RunningScale(nn.Module):
    """Divides by a running mean that forward assigns again."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1)
        self.register_buffer("scale", torch.ones(()))

    def forward(self, x):
        out = self.layer(x)
        if self.training:
            self.scale = 0.9 * self.scale + 0.1 * out.detach().abs().mean()
        return out / self.scale


class Growing(nn.Module):
    """Keeps what it has seen in a buffer that grows, by assignment or in place."""

    def __init__(self, how):
        super().__init__()
        self.layer, self.how = nn.Linear(3, 1), how
        self.register_buffer("seen", torch.zeros(1))

    @torch.no_grad()
    def grow(self, x):
        if self.how == "assign":
            self.seen = torch.cat([self.seen, x[:, 0]])
        else:
            self.seen.resize_(self.seen.numel() + 1).fill_(float(x.sum()))

    def forward(self, x):
        if self.training:
            self.grow(x)
        return self.layer(x) + self.seen.mean()


@settings
@pytest.mark.parametrize(
    "build",
    [RunningScale, lambda: Growing("assign"), lambda: Growing("resize")],
    ids=["assigned", "grown by assignment", "grown in place"],
)
def test_buffers_that_forward_replaces(setting, build):
    """Buffers that forward assigns or resizes go on as by hand, also beside a validation."""
    expected = by_hand(*make(build, setting))
    got = by_gdtrain(*make(build, setting), validation=BatchLoader(data()))
    assert same_bits(got, expected)


def with_modes():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))


def eval_of_parts(epoch, model, optimizer):
    model[1].train(epoch not in (1, 2))
    model[2].train(epoch != 2)


@settings
def test_mode_of_a_layer_changed_in_mid_run(setting):
    """BatchNorm and dropout that a callback puts in eval mode stay in it."""
    expected = by_hand(*make(with_modes, setting), at_epoch_end=eval_of_parts)
    got = by_gdtrain(*make(with_modes, setting), callbacks=[AtEpochEnd(eval_of_parts)])
    assert same_bits(got, expected)


# ── settings of the optimizer ───────────────────────────────────────────────────────────────────


def lower_lr(epoch, model, optimizer):
    for group in optimizer.param_groups:
        group["lr"] *= 0.5


def other_momentum(epoch, model, optimizer):
    for group in optimizer.param_groups:
        group["momentum"] = (0.0, 0.9, 0.5, 0.0)[epoch - 1]


@settings
def test_lr_changed_in_mid_run(setting):
    """A learning rate that a callback sets counts from the next update on."""
    expected = by_hand(*make(Net, setting), at_epoch_end=lower_lr)
    got = by_gdtrain(*make(Net, setting), callbacks=[AtEpochEnd(lower_lr)])
    assert same_bits(got, expected)


@pytest.mark.parametrize("setting", ["plain", "momentum", "decay", "clip"])
def test_momentum_changed_in_mid_run(setting):
    """A momentum that a callback sets, switches off and on counts from the next update on."""
    expected = by_hand(*make(Net, setting), at_epoch_end=other_momentum)
    got = by_gdtrain(*make(Net, setting), callbacks=[AtEpochEnd(other_momentum)])
    assert same_bits(got, expected)


# ── callbacks ───────────────────────────────────────────────────────────────────────────────────


class Count(Callback):
    def __init__(self):
        super().__init__()
        self.steps = []

    def on_before_update(self, trainer):
        self.steps.append(float(trainer.model.weight.grad.norm()))


class AddAt(Callback):
    def __init__(self, step):
        super().__init__(every_n_steps=step)
        self.added = None

    def on_safe_point(self, trainer):
        if self.added is None:
            self.added = Count()
            trainer.callbacks.append(self.added)


@settings
def test_callback_added_in_mid_run_sees_every_later_update(setting):
    """A callback that is added at a safe point sees every update from the next one on."""
    x, y = data(64)
    model, optimizer, clip = make(lambda: nn.Linear(3, 1), setting)
    optimizer.param_groups[0]["lr"] *= 0.01
    adder = AddAt(100)
    Trainer(
        model,
        nn.MSELoss(),
        optimizer,
        MiniBatchLoader((x, y), 1, order="sequential"),
        callbacks=[adder],
        clip_grad_norm=clip,
        device="cpu",
    ).fit(4)
    assert len(adder.added.steps) == 4 * 64 - 100


class AddsWhen(Trainer):
    """Adds a callback from inside the loss of an update, and so inside a block."""

    adds_at: int
    added: Callback

    def compute_loss(self, batch):
        if self.step == self.adds_at and self.added not in self.callbacks:
            self.callbacks.append(self.added)
        return super().compute_loss(batch)


@pytest.mark.parametrize("step", [0, 1, 37, 100])
def test_callback_added_inside_a_block_is_due_from_that_update_on(step):
    """A projection that the loss adds counts after the update in which it is added."""
    x, y = data(64)
    torch.manual_seed(0)
    hand = nn.Linear(3, 1)
    model = copy.deepcopy(hand)
    optimizer = torch.optim.SGD(hand.parameters(), lr=0.05)
    for number in range(2 * 64):
        row = slice(number % 64, number % 64 + 1)
        optimizer.zero_grad()
        F.mse_loss(hand(x[row]), y[row]).backward()
        optimizer.step()
        if number >= step:
            clamp(hand)
    loader = MiniBatchLoader((x, y), 1, order="sequential")
    descent = torch.optim.SGD(model.parameters(), lr=0.05)
    trainer = AddsWhen(model, nn.MSELoss(), descent, loader, device="cpu")
    trainer.adds_at, trainer.added = step, AfterUpdates(clamp)
    trainer.fit(2)
    assert trainer.progress.step == 128
    assert same_bits(model, hand)


# ── data that change ────────────────────────────────────────────────────────────────────────────


def in_place(tensor, memory):
    tensor.add_(0.5)


def through_data(tensor, memory):
    tensor.data.add_(0.5)


def by_numpy(tensor, memory):
    memory += 0.5


FORMS = {
    "batch": lambda data: BatchLoader(data),
    "shuffled batch": lambda data: BatchLoader(data, order="shuffle_once"),
    "minibatch": lambda data: MiniBatchLoader(data, 5),
    "sequential": lambda data: MiniBatchLoader(data, 5, order="sequential"),
    "sample": lambda data: SampleLoader(data),
}


@pytest.mark.few(20)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("change", [in_place, through_data, by_numpy])
@pytest.mark.parametrize("when", ["epochs", "fits"])
@pytest.mark.parametrize("which", ["inputs", "targets"])
def test_data_that_change_count_from_then_on(form, change, when, which):
    """Also where torch does not know of it: their memory may be somebody else's."""
    arrays = {
        name: part.numpy().copy()
        for name, part in zip(("inputs", "targets"), data(12), strict=True)
    }
    given = {name: torch.from_numpy(array) for name, array in arrays.items()}

    class Changes(Callback):
        def on_epoch_end(self, trainer, record):
            if when == "epochs":
                change(given[which], arrays[which])

    torch.manual_seed(0)
    model = Net(unused=False)
    hand = copy.deepcopy(model)
    optimizer, by_hand = (SGD(m.parameters(), lr=0.1) for m in (model, hand))
    trainer = Trainer(
        model,
        nn.MSELoss(),
        optimizer,
        FORMS[form](tuple(given.values())),
        callbacks=[Changes()],
        device="cpu",
        engine="eager",
    )
    rows = {name: part.clone() for name, part in given.items()}
    for epoch in range(3):
        plan = trainer.loader.plan(epoch)
        for number in range(len(plan)):
            chosen = plan.batch_indices(number)
            by_hand.zero_grad()
            F.mse_loss(hand(rows["inputs"][chosen]), rows["targets"][chosen]).backward()
            by_hand.step()
        rows[which] = rows[which] + 0.5
        if when == "fits":
            trainer.fit(epoch + 1)
            change(given[which], arrays[which])
    trainer.fit(3)
    assert all(map(torch.equal, model.parameters(), hand.parameters()))


@pytest.mark.parametrize("form", FORMS)
def test_what_a_program_does_to_a_batch_ends_with_it(form):
    """Inputs, targets and indices are written to; the next batch has those of the plan."""
    given, seen = data(12), []

    class Rough(Trainer):
        def compute_loss(self, batch):
            seen.append((batch.indices.clone(), batch.inputs.clone(), batch.targets.clone()))
            loss = super().compute_loss(batch)
            for tensor in (batch.indices, batch.inputs.data, batch.targets.data):
                tensor.add_(1)
            return loss + 0 * batch.inputs.requires_grad_().sum()

    model = Net(unused=False)
    loader = FORMS[form](given)
    kept = [part.clone() for part in given]
    Rough(
        model, nn.MSELoss(), SGD(model.parameters(), lr=0.1), loader, device="cpu", engine="eager"
    ).fit(3)
    assert all(map(torch.equal, given, kept))
    plans = [loader.plan(epoch) for epoch in range(3)]
    wanted = [plan.batch_indices(n) for plan in plans for n in range(len(plan))]
    for (indices, inputs, targets), rows in zip(seen, wanted, strict=True):
        assert torch.equal(indices, rows)
        assert torch.equal(inputs, kept[0][rows])
        assert torch.equal(targets, kept[1][rows])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("where", ["compute_loss", "on_before_update", "on_safe_point"])
def test_data_that_change_within_an_epoch_count_from_the_next_batch_on(form, where):
    """Though the rows of many batches are gathered at once."""
    given = data(12)
    rows = [part.clone() for part in given]

    class Changing(Trainer):
        def compute_loss(self, batch):
            loss = super().compute_loss(batch)
            if where == "compute_loss":
                in_place(given[0], None)
            return loss

    class Changes(Callback):
        every_n_steps = 1

    if where != "compute_loss":
        setattr(Changes, where, lambda *_: in_place(given[0], None))
    torch.manual_seed(0)
    model = Net(unused=False)
    hand = copy.deepcopy(model)
    optimizer, by_hand = (SGD(m.parameters(), lr=0.1) for m in (model, hand))
    trainer = Changing(
        model,
        nn.MSELoss(),
        optimizer,
        FORMS[form](given),
        callbacks=[Changes()],
        device="cpu",
        engine="eager",
    )
    trainer.fit(2)
    for epoch in range(2):
        plan = trainer.loader.plan(epoch)
        for number in range(len(plan)):
            chosen = plan.batch_indices(number)
            by_hand.zero_grad()
            F.mse_loss(hand(rows[0][chosen]), rows[1][chosen]).backward()
            by_hand.step()
            rows[0] = rows[0] + 0.5
    assert all(map(torch.equal, model.parameters(), hand.parameters()))
