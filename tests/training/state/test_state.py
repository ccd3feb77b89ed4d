"""A snapshot of any optimizer, schedule and module is taken up, and goes on as the plain loop does.

The reference is always a loop written here, which is never interrupted.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import lr_scheduler as torchs

from gdtrain import Callback, MiniBatchLoader, Trainer
from gdtrain.checkpoint.checkpoints import CheckpointStore
from gdtrain.checkpoint.expected_tensors import tensor_check
from gdtrain.errors import CheckpointError

SIZE, EPOCHS = 4, 4  # three batches an epoch, of 4, 4 and 3
STEPS = 3 * EPOCHS


def samples(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(11, 3, generator=draw)
    return x.to(dtype), x.sum(1, keepdim=True).to(dtype)


class SaveAt(Callback):
    """Takes a snapshot after so many updates, and perhaps changes something after others."""

    every_n_steps = 1

    def __init__(self, step: int, change: Callable[[int, Trainer], None] | None = None) -> None:
        super().__init__()
        self.step, self.change, self.held = step, change, None

    def on_safe_point(self, trainer: Trainer) -> None:
        if self.change is not None:
            self.change(trainer.progress.step, trainer)
        if trainer.progress.step == self.step:
            self.held = trainer.state_dict()


def stored(snapshot: dict[str, Any], trainer: Trainer, folder: Path) -> dict[str, Any]:
    """The snapshot as a file gives it back."""
    store = CheckpointStore(folder)
    store.save(1, snapshot)
    return store.load_newest(tensor_check(trainer))[1]


def by_hand(model, optimizer, schedule=None, per="step", change=None, steps=STEPS):
    """The plain loop; ``change`` is called after each update, as a safe point is."""
    x, y = samples(next(model.parameters()).dtype)
    step = 0
    while step < steps:
        for inputs, targets in zip(x.split(SIZE), y.split(SIZE), strict=True):
            optimizer.zero_grad()
            loss = F.mse_loss(model(inputs), targets)
            loss.backward()
            optimizer.step()
            step += 1
            if schedule is not None and per == "step":
                schedule.step()
            if change is not None:
                change(step, model, optimizer)
        if schedule is not None and per == "epoch":
            schedule.step()
    return model


def resumed(make, tmp_path: Path, at: int, changes=None) -> Trainer:
    """A trainer that was interrupted after ``at`` updates, and taken up from a file by another."""
    saving = SaveAt(at, changes)
    first = make(saving)
    first.fit(EPOCHS)
    other = make(SaveAt(-1, changes))
    other.load_state_dict(stored(saving.held, other, tmp_path))
    other.fit(EPOCHS)
    for name, tensor in first.model.state_dict().items():  # and the snapshot changed nothing
        assert_same(other.model.state_dict()[name], tensor)
    return other


def assert_same(one: Any, other: Any) -> None:
    if not isinstance(other, torch.Tensor):
        assert one == other
        return
    assert one.dtype == other.dtype
    assert torch.equal(one, other)


def assert_same_weights(model: nn.Module, hand: nn.Module) -> None:
    expected = hand.state_dict()
    for name, value in model.state_dict().items():
        assert_same(value, expected[name])


def trainer_of(model, optimizer, *callbacks, **more) -> Trainer:
    x, y = samples(next(model.parameters()).dtype)
    loader = MiniBatchLoader((x, y), SIZE, order="sequential")
    return Trainer(
        model, nn.MSELoss(), optimizer, loader, device="cpu", callbacks=callbacks, **more
    )


# ── every optimizer of torch ────────────────────────────────────────────────────────────────

OPTIMIZERS = sorted(
    name
    for name, kind in vars(torch.optim).items()
    if inspect.isclass(kind)
    and issubclass(kind, torch.optim.Optimizer)
    and kind is not torch.optim.Optimizer
)
MORE = {
    "SGD momentum": ("SGD", {"momentum": 0.9, "nesterov": True}),
    "Adam amsgrad": ("Adam", {"amsgrad": True}),
    "RMSprop centered": ("RMSprop", {"centered": True, "momentum": 0.9}),
    "Adagrad decay": ("Adagrad", {"lr_decay": 0.1}),
    "Rprop sizes": ("Rprop", {"step_sizes": (1e-7, 2.0)}),
    "LBFGS search": ("LBFGS", {"line_search_fn": "strong_wolfe", "history_size": 3}),
}


def dense(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))
    return layers.to(dtype)


def matrices(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5, bias=False), nn.Tanh(), nn.Linear(5, 1, bias=False)).to(
        dtype
    )


class Looked(nn.Module):
    """Looks its weights up by the signs of the inputs: their gradients are sparse."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.w = nn.Parameter(torch.randn(8, 1, dtype=dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        index = ((x > 0) * torch.tensor([1, 2, 4])).sum(1)
        return F.embedding(index, self.w, sparse=True)


def build_optimizer(name: str, dtype: torch.dtype):
    kind, options = MORE.get(name, (name, {}))
    build = {"Muon": matrices, "SparseAdam": Looked}.get(kind, dense)
    model = build(dtype)
    if not hasattr(torch.optim, kind):
        pytest.skip(f"this version of PyTorch has no {kind}")
    return model, getattr(torch.optim, kind)(model.parameters(), lr=0.05, **options)


def closed_by_hand(model, optimizer):
    """The plain loop of an optimizer that evaluates the loss itself."""
    x, y = samples(next(model.parameters()).dtype)
    for _ in range(EPOCHS):
        for inputs, targets in zip(x.split(SIZE), y.split(SIZE), strict=True):

            def closure(inputs=inputs, targets=targets):
                optimizer.zero_grad()
                loss = F.mse_loss(model(inputs), targets)
                loss.backward()
                return loss

            optimizer.step(closure)
    return model


@pytest.mark.few(5)
@pytest.mark.parametrize("name", [*OPTIMIZERS, *MORE])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("at", [1, 5, 6])
def test_every_optimizer_goes_on_from_a_file(name, dtype, at, tmp_path) -> None:
    hand = (closed_by_hand if "LBFGS" in name else by_hand)(*build_optimizer(name, dtype))
    trainer = resumed(
        lambda *callbacks: trainer_of(*build_optimizer(name, dtype), *callbacks), tmp_path, at
    )
    assert_same_weights(trainer.model, hand)


@pytest.mark.few(5)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_goes_on_from_its_start(name, tmp_path) -> None:
    """A snapshot before the first update, into the trainer itself after it has trained."""
    make = lambda: trainer_of(*build_optimizer(name, torch.float32))  # noqa: E731
    trainer = make()
    start = trainer.state_dict()
    trainer.fit(EPOCHS)
    expected = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    trainer.load_state_dict(stored(start, trainer, tmp_path))
    assert trainer.progress.step == 0
    trainer.fit(EPOCHS)
    for key, value in trainer.model.state_dict().items():
        assert_same(value, expected[key])


class Wide(torch.optim.Optimizer):
    """Keeps its moments in float64, a matrix for each parameter, and a word for all of them."""

    def __init__(self, params, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        self.state["all"]["calls"] = self.state["all"].get("calls", 0) + 1
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                flat = p.grad.double().reshape(-1)
                outer = torch.outer(flat, flat)
                state["outer"] = 0.9 * state["outer"] + outer if "outer" in state else outer
                state.setdefault("said", ["first", None, 1.5])
                scale = 1 + state["outer"].diagonal().sqrt() + 0.01 * self.state["all"]["calls"]
                p.sub_((group["lr"] * flat / scale).reshape(p.shape).to(p.dtype))


def test_an_optimizer_of_ones_own_goes_on(tmp_path) -> None:
    """Tensors of other shapes and dtypes than the parameters', words, and state of none of them."""

    def make(*callbacks):
        model = dense(torch.float32)
        return trainer_of(model, Wide(model.parameters(), lr=0.1), *callbacks)

    model = dense(torch.float32)
    hand = by_hand(model, Wide(model.parameters(), lr=0.1))
    assert_same_weights(resumed(make, tmp_path, 5).model, hand)


class Nested(torch.optim.Optimizer):
    """Lookahead (Zhang and others, 2019) around another optimizer, whose state it saves itself."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        super().__init__([p for g in inner.param_groups for p in g["params"]], {"lr": 0.5})
        self.inner, self.calls = inner, 0

    @torch.no_grad()
    def step(self, closure=None):
        self.inner.step()
        self.calls += 1
        for p in self.param_groups[0]["params"]:
            slow = self.state[p].setdefault("slow", p.detach().clone())
            if self.calls % 4 == 0:
                slow.lerp_(p, 0.5)
                p.copy_(slow)

    def state_dict(self):
        return {**super().state_dict(), "inner": self.inner.state_dict(), "calls": self.calls}

    def load_state_dict(self, state):
        self.inner.load_state_dict(state["inner"])
        self.calls = state["calls"]
        super().load_state_dict(state)


def test_an_optimizer_that_saves_more_than_its_own_state(tmp_path) -> None:
    def build():
        model = dense(torch.float32)
        inner = torch.optim.Adam(model.parameters(), lr=0.02)
        return model, Nested(inner)

    hand = by_hand(*build())
    trainer = resumed(lambda *callbacks: trainer_of(*build(), *callbacks), tmp_path, 5)
    assert_same_weights(trainer.model, hand)


# ── every schedule of torch ─────────────────────────────────────────────────────────────────


class Falls:
    """A factor that remembers how often it was asked."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, t: int) -> float:
        self.asked.append(t)
        return 1 / (1 + 0.1 * len(self.asked))


class Warm(torchs.LRScheduler):
    """A schedule of your own, with a function, a list that grows and a key that comes later."""

    def __init__(self, optimizer) -> None:
        self.shape = lambda t: 1 / (1 + t)
        self.seen: list[float] = []
        super().__init__(optimizer)

    def get_lr(self):
        if self.last_epoch == 4:
            self.late = 0.5
        self.seen.append(self.optimizer.param_groups[0]["lr"])
        factor = self.shape(len(self.seen)) * getattr(self, "late", 1.0)
        return [base * factor for base in self.base_lrs]


SCHEDULES: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "ConstantLR": lambda o: torchs.ConstantLR(o, 0.5, 4),
    "LinearLR": lambda o: torchs.LinearLR(o, 0.3, 1.0, 5),
    "ExponentialLR": lambda o: torchs.ExponentialLR(o, 0.9),
    "StepLR": lambda o: torchs.StepLR(o, 3, 0.5),
    "MultiStepLR": lambda o: torchs.MultiStepLR(o, [2, 2, 7], 0.5),
    "PolynomialLR": lambda o: torchs.PolynomialLR(o, 9, 1.5),
    "LambdaLR": lambda o: torchs.LambdaLR(o, lambda t: 1 / (1 + t)),
    "MultiplicativeLR": lambda o: torchs.MultiplicativeLR(o, lambda t: 0.9),
    "CosineAnnealingLR": lambda o: torchs.CosineAnnealingLR(o, 5, 0.001),
    "CosineAnnealingWarmRestarts": lambda o: torchs.CosineAnnealingWarmRestarts(o, 3, 2),
    "OneCycleLR": lambda o: torchs.OneCycleLR(o, 0.2, total_steps=STEPS + 1),
    "CyclicLR": lambda o: torchs.CyclicLR(o, 0.01, 0.1, 3, mode="triangular2"),
    "SequentialLR": lambda o: torchs.SequentialLR(
        o, [torchs.LinearLR(o, 0.1, 1.0, 4), torchs.CosineAnnealingLR(o, 8)], [4]
    ),
    "ChainedScheduler": lambda o: torchs.ChainedScheduler(
        [torchs.ConstantLR(o, 0.5, 3), torchs.ExponentialLR(o, 0.9)]
    ),
    "SWALR": lambda o: torch.optim.swa_utils.SWALR(o, 0.01, anneal_epochs=6),
    "LambdaLR, object": lambda o: torchs.LambdaLR(o, Falls()),
    "MultiplicativeLR, object": lambda o: torchs.MultiplicativeLR(o, Falls()),
    "CyclicLR, function": lambda o: torchs.CyclicLR(o, 0.01, 0.1, 3, scale_fn=lambda x: 0.9**x),
    "CyclicLR, object": lambda o: torchs.CyclicLR(o, 0.01, 0.1, 3, scale_fn=Falls()),
    "sequence of a sequence": lambda o: torchs.SequentialLR(
        o,
        [
            torchs.SequentialLR(
                o, [torchs.LinearLR(o, 0.5, 1.0, 2), torchs.ExponentialLR(o, 0.8)], [2]
            ),
            torchs.ConstantLR(o, 0.1, 2),
        ],
        [5],
    ),
    "sequence of three": lambda o: torchs.SequentialLR(
        o,
        [
            torchs.ConstantLR(o, 0.5, 3),
            torchs.CosineAnnealingWarmRestarts(o, 2),
            torchs.LambdaLR(o, Falls()),
        ],
        [3, 8],
    ),
    "chain of sequences": lambda o: torchs.ChainedScheduler(
        [
            torchs.SequentialLR(
                o, [torchs.LinearLR(o, 0.5, 1.0, 3), torchs.ExponentialLR(o, 0.8)], [3]
            ),
            torchs.MultiStepLR(o, [5], 0.5),
        ]
    ),
    "own": Warm,
}
BY_METRIC = {"ReduceLROnPlateau"}


def test_every_schedule_of_torch_is_tried() -> None:
    there = {
        name
        for name, kind in vars(torchs).items()
        if inspect.isclass(kind) and issubclass(kind, torchs.LRScheduler) and name[0] != "_"
    }
    assert there - BY_METRIC - {"LRScheduler"} <= set(SCHEDULES)


RATES = {
    "float": lambda: 0.05,
    "tensor": lambda: torch.tensor(0.05),
    "float64 tensor": lambda: torch.tensor(0.05, dtype=torch.float64),
    "numpy float64": lambda: np.float64(0.05),
    "numpy float32": lambda: np.float32(0.05),
    "int": lambda: 1,
}


def scheduled(name: str, rate: str = "float"):
    model = dense(torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATES[rate](), momentum=0.5)
    return model, optimizer, SCHEDULES[name](optimizer)


def assert_schedule(name: str, per: str, at: int, tmp_path: Path, rate: str = "float") -> None:
    hand, optimizer, schedule = scheduled(name, rate)
    by_hand(hand, optimizer, schedule, per)

    def make(*callbacks):
        model, descent, scheduler = scheduled(name, rate)
        return trainer_of(model, descent, *callbacks, scheduler=scheduler, scheduler_per=per)

    trainer = resumed(make, tmp_path, at)
    assert_same_weights(trainer.model, hand)
    for mine, theirs in zip(trainer.optimizer.param_groups, optimizer.param_groups, strict=True):
        assert {k: v for k, v in mine.items() if k != "params"} == {
            k: v for k, v in theirs.items() if k != "params"
        }
        assert type(mine["lr"]) is type(theirs["lr"])


@pytest.mark.few(14)
@pytest.mark.filterwarnings("ignore:The epoch parameter")  # torch's own, of sequences
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler")
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("per", ["step", "epoch"])
@pytest.mark.parametrize("at", [1, 3, 5, 9])
def test_every_schedule_goes_on_from_a_file(name, per, at, tmp_path) -> None:
    assert_schedule(name, per, at, tmp_path)


def test_no_warning_of_a_first_step_that_was_made_before(tmp_path) -> None:
    assert_schedule("ExponentialLR", "epoch", 3, tmp_path)


@pytest.mark.few(9)
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("name", ["ExponentialLR", "CosineAnnealingLR", "LambdaLR", "StepLR"])
def test_learning_rates_of_any_type_go_on(name, rate, tmp_path) -> None:
    assert_schedule(name, "step", 5, tmp_path, rate)


def halve(step: int, optimizer: torch.optim.Optimizer) -> None:
    """In place in each group, as a plateau does: a rate that two groups share is quartered."""
    for group in optimizer.param_groups if step in (2, 7) else ():
        group["lr"].mul_(0.5)


def share(step: int, optimizer: torch.optim.Optimizer) -> None:
    """As ``trainer.lr = torch.tensor(0.1)`` does, before any rate is halved."""
    rate = torch.tensor(0.1)
    for group in optimizer.param_groups if step == 1 else ():
        group["lr"] = rate


def part(step: int, optimizer: torch.optim.Optimizer) -> None:
    for group in optimizer.param_groups if step == 1 else ():
        group["lr"] = torch.tensor(0.1)


@pytest.mark.parametrize("at", [1, 5])
@pytest.mark.parametrize(
    ("start", "first", "ends_at"),
    [
        ("shared", None, 0.1 / 16),
        ("apart", None, 0.1 / 4),
        ("apart", share, 0.1 / 16),
        ("shared", part, 0.1 / 4),
    ],
)
def test_rates_are_one_tensor_in_a_run_that_is_taken_up_where_they_were(
    start, first, ends_at, at, tmp_path
) -> None:
    def two_groups():
        torch.manual_seed(2)
        model = nn.Linear(3, 1)
        groups = [{"params": [model.weight]}, {"params": [model.bias]}]
        if start == "apart":
            groups = [{**group, "lr": torch.tensor(0.1)} for group in groups]
        return model, torch.optim.SGD(groups, lr=torch.tensor(0.1))

    def change(step: int, optimizer: torch.optim.Optimizer) -> None:
        if first is not None:
            first(step, optimizer)
        halve(step, optimizer)

    hand, optimizer = two_groups()
    by_hand(hand, optimizer, change=lambda step, _, optimizer: change(step, optimizer))
    assert optimizer.param_groups[1]["lr"].item() == pytest.approx(ends_at)
    trainer = resumed(
        lambda *callbacks: trainer_of(*two_groups(), *callbacks),
        tmp_path,
        at,
        lambda step, trainer: change(step, trainer.optimizer),
    )
    assert_same_weights(trainer.model, hand)


@pytest.mark.parametrize("tied", [[0, 2], [0], [1, 1], [0, True], [0, 0], "00"])
def test_a_rate_that_is_not_shared_as_a_state_says_is_refused(tied) -> None:
    model = nn.Linear(3, 1)
    groups = [
        {"params": [p], "lr": torch.tensor(r)}
        for p, r in zip(model.parameters(), (1.0, 2.0), strict=True)
    ]
    trainer = trainer_of(model, torch.optim.SGD(groups, lr=0.1))
    state = trainer.state_dict()
    state["optimizer"]["tied"] = {"lr": tied}
    with pytest.raises(CheckpointError, match="said to be shared by groups"):
        trainer.load_state_dict(state)


def test_what_a_schedule_can_not_save_is_named() -> None:
    class Holds(torchs.LRScheduler):
        def __init__(self, optimizer) -> None:
            self.seen = {1, 2}
            super().__init__(optimizer)

        def get_lr(self):
            return self.base_lrs

    model = dense(torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = trainer_of(model, optimizer, scheduler=Holds(optimizer))
    with pytest.raises(
        CheckpointError, match=r"^scheduler\.seen: a set can't be saved; state_dict"
    ):
        trainer.state_dict()


# ── modules ─────────────────────────────────────────────────────────────────────────────────


class Remembers(nn.Module):
    """Keeps what a module may keep: buffers that grow, come and change their type; extra state."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)
        self.register_buffer("grown", torch.zeros(1))
        self.register_buffer("late", None)
        self.register_buffer("typed", torch.zeros((), dtype=torch.int64))
        self.register_buffer("gone", torch.ones(2))
        self.calls, self.norms = 0, {"max": torch.zeros(()), "all": [(0, None)]}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            with torch.no_grad():
                self.remember(x)
        scale = 1 + 0.01 * self.calls + self.grown.mean() + self.norms["max"] + self.typed
        if self.late is not None:
            scale = scale + self.late.mean()
        return self.layer(x) / (scale if self.gone is None else scale * self.gone.mean())

    def remember(self, x: torch.Tensor) -> None:
        self.calls += 1
        self.grown = torch.cat([self.grown, x[:1, 0]])
        self.typed = self.typed + 0.5
        if self.calls == 4:
            self.late = x.clone()
            self.gone = None
        self.norms["max"] = torch.maximum(self.norms["max"], x.norm())
        self.norms["all"].append((self.calls, float(x.sum())))

    def get_extra_state(self):
        return {"calls": self.calls, "norms": self.norms}

    def set_extra_state(self, state) -> None:
        self.calls, self.norms = state["calls"], state["norms"]


def within(module: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Sequential(nn.Identity(), module), nn.Identity())


@pytest.mark.parametrize("wrap", [lambda m: m, within])
@pytest.mark.parametrize("at", [2, 3, 4, 7])
def test_a_module_that_remembers_goes_on(wrap, at, tmp_path) -> None:
    def build():
        torch.manual_seed(0)
        model = wrap(Remembers())
        return model, torch.optim.SGD(model.parameters(), lr=0.1)

    hand = by_hand(*build())
    trainer = resumed(lambda *c: trainer_of(*build(), *c), tmp_path, at)
    assert trainer.model.state_dict().keys() == hand.state_dict().keys()
    for name, value in hand.state_dict().items():
        if isinstance(value, torch.Tensor):
            assert_same(trainer.model.state_dict()[name], value)
    (mine,) = [m for m in trainer.model.modules() if isinstance(m, Remembers)]
    (theirs,) = [m for m in hand.modules() if isinstance(m, Remembers)]
    assert mine.norms == theirs.norms


class Own:
    pass


@pytest.mark.parametrize("value", [Own(), {1, 2}, np.zeros(3), b"bytes", nn.Linear(1, 1)])
def test_extra_state_of_another_kind_is_named(value) -> None:
    class Odd(nn.Linear):
        def get_extra_state(self):
            return {"held": [1, value]}

        def set_extra_state(self, state) -> None: ...

    torch.manual_seed(0)
    model = nn.Sequential(Odd(3, 1))
    trainer = trainer_of(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(CheckpointError) as caught:
        trainer.state_dict()
    assert str(caught.value) == (
        f"model.0._extra_state.held.1: a {type(value).__name__} can't be saved; state_dict() may "
        "hold dicts, lists, tuples, tensors, numbers, text and None"
    )


class Weighed(nn.Module):
    """A loss with a parameter, a buffer and extra state of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("mean", torch.zeros(()))
        self.calls = 0

    def forward(self, output, targets):
        if self.training:
            self.calls += 1
            self.mean = 0.9 * self.mean + 0.1 * targets.mean()
        error = (output - targets).square().mean()
        return error * self.scale.exp() - self.scale + self.mean.square() / (1 + self.calls)

    def get_extra_state(self):
        return self.calls

    def set_extra_state(self, state) -> None:
        self.calls = state


def test_a_loss_with_parameters_goes_on(tmp_path) -> None:
    def build():
        torch.manual_seed(0)
        model, loss = nn.Linear(3, 1), Weighed()
        return model, loss, torch.optim.Adam([*model.parameters(), *loss.parameters()], lr=0.05)

    def make(*callbacks):
        model, loss, optimizer = build()
        loader = MiniBatchLoader(samples(), SIZE, order="sequential")
        return Trainer(model, loss, optimizer, loader, device="cpu", callbacks=callbacks)

    model, loss, optimizer = build()
    x, y = samples()
    for _ in range(EPOCHS):
        for inputs, targets in zip(x.split(SIZE), y.split(SIZE), strict=True):
            optimizer.zero_grad()
            loss(model(inputs), targets).backward()
            optimizer.step()
    trainer = resumed(make, tmp_path, 5)
    assert_same_weights(trainer.model, model)
    assert_same_weights(trainer.loss, loss)


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_a_layer_that_was_lazy_goes_on_in_one_that_is(tmp_path) -> None:
    def build(lazy: bool):
        torch.manual_seed(0)
        first = nn.LazyLinear(5) if lazy else nn.Linear(3, 5)
        return nn.Sequential(first, nn.Tanh(), nn.Linear(5, 1))

    model = build(lazy=False)
    trainer = trainer_of(model, torch.optim.SGD(model.parameters(), lr=0.1))
    trainer.fit(1)
    weights = trainer.state_dict()["model"]
    from gdtrain.training.state import module_state

    other = build(lazy=True)
    assert module_state.take(other, "model")["0.weight"] is None
    module_state.check("model", weights, other)
    module_state.put(other, weights, torch.device("cpu"))
    assert_same_weights(other, model)


# ── what changes in mid-run ─────────────────────────────────────────────────────────────────


class Parts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.norm, self.head = nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 1)

    def forward(self, x):
        return self.head(torch.tanh(self.norm(self.body(x))))


def freeze(step, model, optimizer):
    if step == 2:
        model.body.requires_grad_(False)
        model.norm.eval()


def thaw(step, model, optimizer):
    model.body.requires_grad_(step >= 3)


def join(step, model, optimizer):
    if step == 3:
        model.body.requires_grad_(True)
        optimizer.add_param_group({"params": list(model.body.parameters()), "lr": 0.01})


def settings(step, model, optimizer):
    if step == 3:
        optimizer.param_groups[0].update(lr=0.02, momentum=0.5, weight_decay=0.1, nesterov=True)


@pytest.mark.few(14)
@pytest.mark.parametrize("change", [freeze, thaw, join, settings])
@pytest.mark.parametrize("at", [2, 3, 5, 6])
@pytest.mark.parametrize("kind", ["SGD", "Adam"])
def test_changes_in_mid_run_are_part_of_the_state(change, at, kind, tmp_path) -> None:
    """Frozen parameters, modes, added groups and settings come back as they were."""
    if kind == "Adam" and change is settings:
        return

    def build():
        model = Parts()
        model.body.requires_grad_(change is not join)
        held = [model.norm, model.head, *([] if change is join else [model.body])]
        options = {"momentum": 0.9} if kind == "SGD" else {}
        parameters = [p for part in held for p in part.parameters()]
        return model, getattr(torch.optim, kind)(parameters, lr=0.05, **options)

    hand = by_hand(*build(), change=change)
    trainer = resumed(
        lambda *callbacks: trainer_of(*build(), *callbacks),
        tmp_path,
        at,
        lambda step, t: change(step, t.model, t.optimizer),
    )
    assert_same_weights(trainer.model, hand)


SCHEDULES_OF_RATES = {
    "exponential": lambda o: torchs.ExponentialLR(o, 0.8),
    "step": lambda o: torchs.StepLR(o, 2, 0.5),
}


@pytest.mark.parametrize("at", [3, 5, 6])
@pytest.mark.parametrize("schedule", SCHEDULES_OF_RATES)
def test_a_group_added_beside_a_schedule_is_part_of_the_state(schedule, at, tmp_path) -> None:
    """A schedule notes an ``initial_lr`` in the groups that are there when it is made."""

    def build():
        model = Parts()
        model.body.requires_grad_(False)
        held = [*model.norm.parameters(), *model.head.parameters()]
        optimizer = torch.optim.SGD(held, lr=0.05, momentum=0.9)
        return model, optimizer, SCHEDULES_OF_RATES[schedule](optimizer)

    def make(*callbacks):
        model, optimizer, scheduler = build()
        return trainer_of(model, optimizer, *callbacks, scheduler=scheduler)

    hand = by_hand(*build(), per="epoch", change=join)
    trainer = resumed(make, tmp_path, at, lambda step, t: join(step, t.model, t.optimizer))
    assert_same_weights(trainer.model, hand)


@pytest.mark.parametrize("at", [4, 5, 6])
def test_a_model_in_eval_mode_in_mid_run_stays_so_in_a_run_that_is_taken_up(at, tmp_path) -> None:
    def evaluating(step, model, optimizer):
        if step == 4:
            model.eval()

    def build():
        model = Parts()
        return model, torch.optim.SGD(model.parameters(), lr=0.05)

    hand = by_hand(*build(), change=evaluating)
    trainer = resumed(
        lambda *callbacks: trainer_of(*build(), *callbacks),
        tmp_path,
        at,
        lambda step, t: evaluating(step, t.model, t.optimizer),
    )
    assert_same_weights(trainer.model, hand)
    assert not trainer.model.training
    trainer.fit(EPOCHS + 1)  # a fit that takes up nothing trains
    assert trainer.model.training


def test_a_snapshot_after_a_fit_trains_whatever_the_mode_was() -> None:
    trainer = trainer_of(model := Parts(), torch.optim.SGD(model.parameters(), lr=0.05))
    trainer.fit(1)
    model.eval()
    other = trainer_of(model := Parts(), torch.optim.SGD(model.parameters(), lr=0.05))
    other.load_state_dict(trainer.state_dict())
    assert not other.model.training
    other.fit(2)
    assert other.model.training


def test_a_snapshot_taken_up_in_inference_mode_trains_on() -> None:
    def made() -> Trainer:
        torch.manual_seed(0)
        model = nn.Linear(3, 1)
        return trainer_of(model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9))

    first, other = made(), made()
    first.fit(2)
    with torch.inference_mode():
        other.load_state_dict(first.state_dict())
    other.fit(EPOCHS)
    torch.manual_seed(0)
    hand = nn.Linear(3, 1)
    by_hand(hand, torch.optim.SGD(hand.parameters(), lr=0.05, momentum=0.9))
    assert_same_weights(other.model, hand)


# ── what does not fit ───────────────────────────────────────────────────────────────────────


def everything(trainer: Trainer) -> Iterator[tuple[str, Any]]:
    """All that a restore may change, by name, in copies."""
    snapshot = trainer.state_dict()
    stack: list[tuple[str, Any]] = [("", {k: v for k, v in snapshot.items() if k != "made_by"})]
    while stack:
        name, value = stack.pop()
        if isinstance(value, dict):
            stack += [(f"{name}.{key}", item) for key, item in value.items()]
        elif isinstance(value, list | tuple):
            stack += [(f"{name}.{number}", item) for number, item in enumerate(value)]
        else:
            yield name, value


def wrong_states() -> dict[str, tuple[str, Callable[[dict[str, Any]], Any]]]:
    def kept(key: str, value: Any) -> Callable[[dict[str, Any]], Any]:
        return lambda s: next(iter(s["optimizer"]["state"].values())).update({key: value})

    def group(**values: Any) -> Callable[[dict[str, Any]], Any]:
        return lambda s: s["optimizer"]["groups"][0].update(values)

    return {
        "rows of another shape": ("Adafactor", kept("row_var", torch.zeros(7, 7))),
        "a moment of another shape": ("Adam", kept("exp_avg", torch.zeros(2, 2))),
        "a moment that is one number": ("Adam", kept("exp_avg", torch.zeros(()))),
        "a moment of whole numbers": ("Adam", kept("exp_avg", torch.zeros(5, 3).long())),
        "a moment that is a word": ("NAdam", kept("exp_avg", "x")),
        "no sum": (
            "Adagrad",
            lambda s: [kept.pop("sum") for kept in s["optimizer"]["state"].values()],
        ),
        "a sum of another shape": ("Adagrad", kept("sum", torch.zeros(9))),
        "a size of another shape": ("Rprop", kept("step_size", torch.zeros(9))),
        "a mean of another shape": ("ASGD", kept("ax", torch.zeros(9))),
        "steps below 0": ("RAdam", kept("step", torch.tensor(-3.0))),
        "steps that are no number": ("Adamax", kept("step", torch.tensor(float("nan")))),
        "a velocity of another shape": ("Muon", kept("momentum_buffer", torch.zeros(9, 9))),
        "betas that are 1": ("Adam", group(betas=(1.0, 1.0))),
        "betas that are large": ("Adam", group(betas=(5.0, 7.0))),
        "a rate that is a word": ("SGD", group(lr="high")),
        "a rate that is infinite": ("SGD", group(lr=torch.tensor(float("inf")))),
        "capturable on a CPU": ("Adam", group(capturable=True)),
        "a setting too many": ("SGD", group(foreign=1)),
        "a group too few": ("SGD", lambda s: s["optimizer"]["groups"].clear()),
        "a group twice": (
            "SGD",
            lambda s: s["optimizer"]["groups"].append(s["optimizer"]["groups"][0]),
        ),
        "an unknown frozen parameter": ("SGD", lambda s: s["flags"]["model"]["frozen"].append("x")),
        "flags that are none": ("SGD", lambda s: s["flags"].update(model=3)),
        "a mode that is none": ("SGD", lambda s: s.update(stays_in_eval=1)),
    }


@pytest.mark.parametrize("name", wrong_states())
def test_a_state_that_does_not_fit_changes_nothing(name) -> None:
    kind, spoil = wrong_states()[name]
    trainer = trainer_of(*build_optimizer(kind, torch.float32))
    trainer.fit(1)
    state = trainer.state_dict()
    spoil(state)
    other = trainer_of(*build_optimizer(kind, torch.float32))
    other.fit(2)
    before = dict(everything(other))
    with pytest.raises(CheckpointError):
        other.load_state_dict(state)
    after = dict(everything(other))
    assert after.keys() == before.keys()
    for key, value in before.items():
        assert_same(after[key], value)


class Refuses(nn.Linear):
    """Looks at its extra state only when it takes it back."""

    def get_extra_state(self):
        return {"sound": 1}

    def set_extra_state(self, state) -> None:
        state["sound"]


def test_a_state_that_a_module_refuses_in_the_middle_is_undone() -> None:
    def make():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), Refuses(4, 1))
        return trainer_of(model, torch.optim.Adam(model.parameters(), lr=0.1))

    trainer, other = make(), make()
    trainer.fit(1)
    other.fit(2)
    state = trainer.state_dict()
    state["model"]["1._extra_state"] = {}
    before = dict(everything(other))
    with pytest.raises(CheckpointError, match="sound"):
        other.load_state_dict(state)
    for key, value in everything(other):
        assert_same(value, before[key])


def test_a_tensor_of_nobody_is_named() -> None:
    model = dense(torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = trainer_of(model, optimizer)
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2, 3))]})
    with pytest.raises(CheckpointError) as caught:
        trainer.state_dict()
    assert str(caught.value) == (
        "optimizer: it holds a parameter [2, 3] that is neither the model's nor the loss's, and so "
        "can't be saved"
    )
