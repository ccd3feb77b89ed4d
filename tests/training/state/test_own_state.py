"""State that a subclass registers: saved, resumed, kept from looks and from undone updates."""

import copy

import pytest
import torch
from helpers.ranks import on_ranks
from torch import nn

from gdtrain import BatchLoader, Callback, MiniBatchLoader, Trainer
from gdtrain.checkpoint.checkpoints import CheckpointStore
from gdtrain.checkpoint.expected_tensors import tensor_check
from gdtrain.errors import CheckpointError, ConfigError, NonFiniteError
from gdtrain.training.state.keeper import Keeper

LENGTH, LANES, WINDOW = 20, 3, 4
# Three long series side by side, cut into windows: a batch goes on where the one before it ended.
SERIES = torch.randn(LENGTH, LANES, 2, generator=torch.Generator().manual_seed(0))
WINDOWS = SERIES.reshape(LENGTH // WINDOW, WINDOW, LANES, 2).permute(0, 2, 1, 3).reshape(-1, 4, 2)


def recurrent() -> nn.ModuleDict:
    torch.manual_seed(0)
    return nn.ModuleDict({"rnn": nn.GRU(2, 4, batch_first=True), "head": nn.Linear(4, 2)})


def window_loss(model, hidden, windows):
    """The loss of a window, and the state after it."""
    outputs, hidden = model["rnn"](windows, hidden)
    return (model["head"](outputs[:, :-1]) - windows[:, 1:]).square().mean(), hidden.detach()


class Truncated(Trainer):
    """Back-propagation through time, truncated to a window (Williams and Peng, 1990)."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.register_state("hidden", None)

    def compute_loss(self, batch):
        starts = self.progress.step_in_epoch == 0 or not self.model.training
        loss, self.hidden = window_loss(self.model, None if starts else self.hidden, batch.inputs)
        return loss


def truncated(**options):
    model = recurrent()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    loader = MiniBatchLoader(WINDOWS, LANES, order="sequential")
    return Truncated(model, None, optimizer, loader, device="cpu", **options)


def by_hand(epochs):
    model = recurrent()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(epochs):
        hidden = None
        for windows in WINDOWS.split(LANES):
            optimizer.zero_grad()
            loss, hidden = window_loss(model, hidden, windows)
            loss.backward()
            optimizer.step()
    return model, hidden


def assert_same(mine, theirs):
    for one, other in zip(mine.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other)


class Looks(Callback):
    """Looks at the model in the middle of an epoch."""

    every_n_steps = 2

    def on_safe_point(self, trainer):
        trainer.evaluate()


class StopsAt(Callback):
    def __init__(self, step):
        super().__init__(every_n_steps=step)

    def on_safe_point(self, trainer):
        trainer.stop("here")


def test_carried_state_is_that_of_the_plain_loop_whoever_looks():
    model, hidden = by_hand(3)
    trainer = truncated(callbacks=[Looks()])
    trainer.fit(3)
    assert_same(trainer.model, model)
    assert torch.equal(trainer.hidden, hidden)


@pytest.mark.parametrize("step", [1, 7])
def test_a_run_that_is_resumed_in_mid_epoch_ends_with_the_same_bits(step, tmp_path):
    model, _ = by_hand(3)
    first = truncated(callbacks=[StopsAt(step)])
    first.fit(3)
    store = CheckpointStore(tmp_path)
    store.save(step, first.state_dict())
    second = truncated()
    _, state, _ = store.load_newest(tensor_check(second))
    second.load_state_dict(state)
    second.fit(3)
    assert_same(second.model, model)


def test_an_update_that_is_not_made_leaves_the_state():
    class Breaks(Truncated):
        def compute_loss(self, batch):
            loss = super().compute_loss(batch)
            return loss / 0 if self.step == 7 else loss

    model = recurrent()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    loader = MiniBatchLoader(WINDOWS, LANES, order="sequential")
    trainer = Breaks(model, None, optimizer, loader, device="cpu")
    good = truncated(callbacks=[StopsAt(7)])
    good.fit(2)
    with pytest.raises(NonFiniteError):
        trainer.fit(2)
    assert torch.equal(trainer.hidden, good.hidden)
    assert trainer.step == 7


def in_place(average: nn.Module) -> None:
    average.weight.data.add_(1)


def weight_anew(average: nn.Module) -> None:
    average.weight = nn.Parameter(average.weight.detach() + 1)


def buffer_anew(average: nn.Module) -> None:
    average.count = average.count + 1


@pytest.mark.parametrize("move", [in_place, weight_anew, buffer_anew])
def test_an_update_that_is_not_made_leaves_a_registered_module(move):
    class Averages(Truncated):
        def compute_loss(self, batch):
            loss = super().compute_loss(batch)
            move(self.average)
            return loss / 0 if self.step == 7 else loss

    model = recurrent()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    loader = MiniBatchLoader(WINDOWS, LANES, order="sequential")
    trainer = Averages(model, None, optimizer, loader, device="cpu")
    average = nn.Linear(1, 1, bias=False)
    average.register_buffer("count", torch.zeros(()))
    nn.init.zeros_(average.weight)
    trainer.register_state("average", average)
    with pytest.raises(NonFiniteError):
        trainer.fit(2)
    assert trainer.average.weight.item() + trainer.average.count.item() == trainer.step == 7


def written(seen) -> None:
    for tensor in (seen["slow"][0], seen["pair"][0]):
        tensor.add_(1)
    seen["count"] += 1


def replaced(seen) -> None:
    seen["slow"][0] = seen["slow"][0] + 1
    seen["pair"] = (seen["pair"][0] + 1,)
    seen["count"] += 1


def grown(seen) -> None:
    seen["slow"].insert(0, seen["slow"][0] + 1)
    seen["slow"].pop()
    seen["pair"][0].data = seen["pair"][0] + 1
    seen["count"] = seen.pop("count") + 1


def resized(seen) -> None:
    slow, one = seen["slow"][0], seen["pair"][0]
    slow.resize_(2).fill_(slow[0].item() + 1)
    slow.resize_(1)
    one.set_(one + 1)
    seen["count"] += 1


@pytest.mark.parametrize("move", [written, replaced, grown, resized])
def test_an_update_that_is_not_made_leaves_what_is_in_lists_and_dicts(move):
    class Counts(Truncated):
        def compute_loss(self, batch):
            loss = super().compute_loss(batch)
            with torch.no_grad():
                move(self.seen)
            return loss / 0 if self.step == 7 else loss

    model = recurrent()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    loader = MiniBatchLoader(WINDOWS, LANES, order="sequential")
    trainer = Counts(model, None, optimizer, loader, device="cpu")
    seen = {"slow": [torch.zeros(1)], "pair": (torch.zeros(1),), "count": 0}
    trainer.register_state("seen", seen)
    with pytest.raises(NonFiniteError):
        trainer.fit(2)
    assert trainer.seen is seen
    assert [*seen] == (["slow", "pair", "count"])
    assert [seen["slow"][0].tolist(), seen["pair"][0].tolist(), seen["count"]] == [[7], [7], 7]
    assert len(seen["slow"]) == len(seen["pair"]) == 1


def test_whoever_holds_a_registered_tensor_sees_it_put_back():
    trainer = truncated()
    held = torch.zeros(2, 3)
    wide = torch.zeros(1, 1).expand(4, 2)  # one number in eight places
    trainer.register_state("tensors", [held[0], {"second row": held[1]}, wide])
    keeper = Keeper(trainer, "own")
    held += 1
    wide[:1, :1] += 1
    keeper.restore()
    assert not held.any()
    assert not wide.any()


class Teaching(Trainer):
    """Distillation from an average of the model's own weights."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.register_state("teacher", copy.deepcopy(self.model))
        self.register_state("seen", {"batches": 0, "last": None})
        self.register_state("noise", torch.Generator().manual_seed(3))

    def compute_loss(self, batch):
        noisy = batch.inputs + torch.randn(batch.inputs.shape, generator=self.noise)
        with torch.no_grad():
            aim = self.teacher(batch.inputs)
        self.seen["batches"] += 1
        self.seen["last"] = noisy
        return (self.model(noisy) - aim).square().mean() + self.model(noisy).mean()

    def train_step(self, batch):
        loss = super().train_step(batch)
        with torch.no_grad():
            for mean, value in zip(self.teacher.parameters(), self.model.parameters(), strict=True):
                mean.lerp_(value, 0.1)
        return loss


def teaching(**options):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    X = torch.randn(8, 2, generator=torch.Generator().manual_seed(2))
    return Teaching(model, None, optimizer, MiniBatchLoader(X, 3), device="cpu", **options)


def test_teachers_generators_and_plain_values_go_on():
    whole = teaching()
    whole.fit(4)
    first = teaching(callbacks=[StopsAt(5)])
    first.fit(4)
    snapshot = first.state_dict()
    first.fit(4)  # the snapshot is a copy
    second = teaching()
    second.load_state_dict(snapshot)
    second.fit(4)
    assert_same(second.model, whole.model)
    assert_same(second.teacher, whole.teacher)
    assert second.seen["batches"] == whole.seen["batches"] == 12
    assert torch.equal(second.seen["last"], whole.seen["last"])


def test_modes_and_frozen_layers_of_a_registered_module_go_on(tmp_path):
    first = teaching()
    first.teacher[0].requires_grad_(False)
    first.teacher[2].eval()
    first.fit(1)
    store = CheckpointStore(tmp_path)
    store.save(1, first.state_dict())
    second = teaching()
    _, state, _ = store.load_newest(tensor_check(second))
    second.load_state_dict(state)
    frozen = [not parameter.requires_grad for parameter in second.teacher.parameters()]
    assert frozen == [True, True, False, False]
    assert [layer.training for layer in second.teacher] == [True, True, False]
    assert all(p.requires_grad for p in second.model.parameters())


def test_parameters_that_are_registered_stay_frozen(tmp_path):
    """A temperature that is learnt, say: alone, or among others in a dict."""
    first, second = teaching(), teaching()
    for trainer in (first, second):
        trainer.register_state("alone", nn.Parameter(torch.zeros(1)))
        several = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))]
        trainer.register_state("among", {"others": several, "count": 0})
    first.alone.requires_grad_(False)
    first.among["others"][1].requires_grad_(False)
    first.fit(1)
    store = CheckpointStore(tmp_path)
    store.save(1, first.state_dict())
    _, state, _ = store.load_newest(tensor_check(second))
    second.load_state_dict(state)
    assert not second.alone.requires_grad
    assert [p.requires_grad for p in second.among["others"]] == [True, False]


def test_a_look_leaves_generators_and_what_is_in_a_dict():
    trainer = teaching()
    trainer.fit(1)
    before = trainer.state_dict()["own"]
    trainer.evaluate()
    after = trainer.state_dict()["own"]
    assert after[0]["seen"]["batches"] == before[0]["seen"]["batches"] == 3
    assert torch.equal(after[0]["noise"], before[0]["noise"])


# A constraint, mean output <= BOUND, whose multiplier climbs by an optimizer of its own.
BOUND, X_DUAL = 0.1, torch.randn(12, 2, generator=torch.Generator().manual_seed(3))


def lagrangian(model, multiplier, inputs):
    outputs = model(inputs)
    return (outputs - inputs.sum(1, keepdim=True)).square().mean() + multiplier * (
        outputs.mean() - BOUND
    )


class Constrained(Trainer):
    """Descends in the weights, and climbs in the multiplier (Arrow, Hurwicz and Uzawa, 1958)."""

    def __init__(self, *arguments, nested, **options):
        super().__init__(*arguments, **options)
        self.multiplier = nn.Parameter(torch.zeros(()))
        self.register_state(
            "dual", {"multipliers": [self.multiplier]} if nested else self.multiplier
        )
        climbs = torch.optim.SGD([self.multiplier], lr=0.5, momentum=0.5, maximize=True)
        self.register_state("climbs", climbs)

    def compute_loss(self, batch):
        held = self.dual["multipliers"][0] if isinstance(self.dual, dict) else self.dual
        return lagrangian(self.model, held, batch.inputs)

    def train_step(self, batch):
        self.climbs.zero_grad()
        loss = self.batch_gradient(batch)
        self.finish_gradient()
        self.optimizer.step()
        self.climbs.step()
        return loss


def constrained(nested, **options):
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    loader = MiniBatchLoader(X_DUAL, 5, order="sequential")
    return Constrained(model, None, optimizer, loader, nested=nested, device="cpu", **options)


@pytest.mark.parametrize("nested", [False, True])
def test_a_parameter_stays_the_one_that_its_optimizer_steps(nested):
    torch.manual_seed(0)
    model, multiplier = nn.Linear(2, 1), nn.Parameter(torch.zeros(()))
    descends = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    climbs = torch.optim.SGD([multiplier], lr=0.5, momentum=0.5, maximize=True)
    for inputs in X_DUAL.split(5) * 4:
        descends.zero_grad()
        climbs.zero_grad()
        lagrangian(model, multiplier, inputs).backward()
        descends.step()
        climbs.step()

    first = constrained(nested, callbacks=[Looks(), StopsAt(5)])
    first.fit(4)
    second = constrained(nested)
    second.load_state_dict(first.state_dict())
    second.fit(4)
    assert_same(second.model, model)
    assert torch.equal(second.multiplier, multiplier)


def test_a_function_that_holds_a_dict_or_a_tensor_holds_the_state():
    """What register_state returned: the loss function below never asks the trainer for it."""

    def make():
        torch.manual_seed(0)
        model = nn.Linear(2, 1)

        def loss(trainer, batch):
            counts["batches"] += 1
            counts["sizes"].append(len(batch))
            average.lerp_(trainer.model.weight.detach()[0], 0.5)
            scale = 1 + 1 / counts["batches"] + len(counts["sizes"])
            return (trainer.model(batch.inputs) - average.sum()).square().mean() / scale

        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        loader = MiniBatchLoader(X_DUAL, 5, order="sequential")
        trainer = Trainer(
            model, None, optimizer, loader, compute_loss=loss, callbacks=[Looks()], device="cpu"
        )
        counts = trainer.register_state("counts", {"batches": 0, "sizes": []})
        average = trainer.register_state("average", torch.zeros(2))
        return trainer, counts

    whole, counts = make()
    whole.fit(4)
    assert counts["batches"] == 12
    assert counts["sizes"] == [5, 5, 2] * 4
    first, _ = make()
    first.fit(2)
    second, goes_on = make()
    second.load_state_dict(first.state_dict())
    second.fit(4)
    assert goes_on is second.counts
    assert goes_on == counts
    assert_same(second.model, whole.model)


def test_one_tensor_under_two_names_or_in_the_model_gets_two_values():
    class Two(Trainer):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            zeros = torch.zeros(2)
            self.register_state("first", zeros)
            self.register_state("second", zeros)
            self.register_state("before", self.model.weight)

        def compute_loss(self, batch):
            self.first = self.first + 1
            self.second = self.second - 1
            self.before = self.model.weight.detach().clone()
            return self.model(batch.inputs).square().mean()

    def make():
        torch.manual_seed(0)
        model = nn.Linear(2, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return Two(model, None, optimizer, BatchLoader(X_DUAL), device="cpu")

    trainer, other = make(), make()
    trainer.fit(3)
    other.load_state_dict(trainer.state_dict())
    assert torch.equal(other.first, torch.full((2,), 3.0))
    assert torch.equal(other.second, torch.full((2,), -3.0))
    assert torch.equal(other.before, trainer.before)
    assert_same(other.model, trainer.model)


def test_a_state_of_other_names_is_refused():
    trainer, other = truncated(), teaching()
    with pytest.raises(CheckpointError, match="own: the state lacks hidden, registered here"):
        trainer.load_state_dict({k: v for k, v in trainer.state_dict().items() if k != "own"})
    own = other.state_dict()["own"]
    with pytest.raises(CheckpointError, match="own: the state lacks hidden, registered here"):
        trainer.load_state_dict({**trainer.state_dict(), "own": own})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("model", 1, r"register_state\('model'\): the trainer has an attribute of that name"),
        ("fit", 1, r"register_state\('fit'\): the trainer has an attribute of that name"),
        ("a b", 1, r"register_state\('a b'\): the name must be one that an attribute can have"),
        ("tools", {1, 2}, r"register_state\('tools'\): a set can't be saved; give tensors, num"),
    ],
)
def test_what_can_not_be_registered(name, value, message):
    with pytest.raises(ConfigError, match=message):
        truncated().register_state(name, value)


def test_it_can_be_registered_before_the_rest_is_made():
    class Early(Trainer):
        def __init__(self, *arguments, **options):
            self.register_state("count", 0)
            super().__init__(*arguments, **options)

    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = torch.ones(4, 2), torch.ones(4, 1)
    trainer = Early(model, nn.MSELoss(), optimizer, BatchLoader(data), device="cpu")
    assert trainer.state_dict()["own"] == [{"count": 0}]


def on_one_of_two(rank):
    class Own(Trainer):
        def train_step(self, batch):
            self.last = batch.inputs.detach().clone()
            return super().train_step(batch)

    def make():
        torch.manual_seed(0)
        model = nn.Linear(2, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        X = torch.arange(12.0).view(6, 2)
        trainer = Own(model, nn.MSELoss(), optimizer, MiniBatchLoader((X, X[:, :1]), 3))
        trainer.register_state("last", None)
        return trainer

    trainer, other = make(), make()
    trainer.fit(1)
    state = trainer.state_dict()
    other.load_state_dict(state)
    return trainer.last, other.last, state["own"]


def test_each_process_has_its_own():
    results = on_ranks(on_one_of_two)
    for mine, resumed, own in results:
        assert torch.equal(mine, resumed)
        assert len(own) == 2
    assert results[0][0].shape != results[1][0].shape  # of 3 samples, 1 and 2
    alone = teaching()
    alone.own_state.clear()
    for name in ("teacher", "seen", "noise"):
        delattr(alone, name)
    alone.register_state("last", None)
    with pytest.raises(CheckpointError, match="own: last was another in each of 2 processes"):
        alone.load_state_dict({**alone.state_dict(), "own": results[0][2]})


def test_a_run_of_which_all_is_frozen_is_taken_up():
    first = teaching()
    first.fit(2)
    first.model.requires_grad_(False)
    second, whole = teaching(), teaching()
    second.load_state_dict(first.state_dict())
    assert not any(p.requires_grad for p in second.model.parameters())
    second.model.requires_grad_(True)
    second.fit(4)
    whole.fit(4)
    assert_same(second.model, whole.model)
