"""Every function of PyTorch that a plain update calls, replaced in turn: a trainer calls it too.

Which these are is seen while a plain loop runs, so that what no list names is found here.
"""

import copy
import sys
from collections.abc import Callable
from types import BuiltinFunctionType, FunctionType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam

from gdtrain import MiniBatchLoader, Trainer

DRAWS = torch.Generator().manual_seed(0)
X, Y = torch.randn(8, 3, generator=DRAWS), torch.randn(8, 1, generator=DRAWS)
CLASSES = torch.randint(0, 3, (8,), generator=DRAWS)
RUNS: dict[str, tuple[list[nn.Module], nn.Module, Callable[..., Any], Tensor]] = {
    "sgd": ([nn.ReLU(), nn.Linear(5, 1)], nn.MSELoss(), SGD, Y),
    "momentum": (
        [nn.LayerNorm(5), nn.Linear(5, 1)],
        nn.L1Loss(),
        lambda p, lr: SGD(p, lr, momentum=0.9, weight_decay=0.1, nesterov=True),
        Y,
    ),
    "adam": (
        [nn.BatchNorm1d(5), nn.GELU(), nn.Linear(5, 3)],
        nn.CrossEntropyLoss(),
        lambda p, lr: Adam(p, lr, weight_decay=0.1),
        CLASSES,
    ),
}


class Own(Trainer):
    """Whose code may change anything in each update."""

    def compute_loss(self, batch):
        return self.loss(self.model(batch.inputs), batch.targets)


def parts(name: str) -> tuple[nn.Module, nn.Module, torch.optim.Optimizer, Tensor]:
    layers, loss, kind, targets = RUNS[name]
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 5), *copy.deepcopy(layers))
    return model, copy.deepcopy(loss), kind(model.parameters(), lr=0.02), targets


def by_hand(
    model: nn.Module, loss: nn.Module, optimizer: torch.optim.Optimizer, targets: Tensor
) -> list[Tensor]:
    for _ in range(2):
        for first in range(0, 8, 4):
            optimizer.zero_grad()
            loss(model(X[first : first + 4]), targets[first : first + 4]).backward()
            optimizer.step()
    return list(model.parameters())


def ours(name: str, kind: type[Trainer]) -> list[Tensor]:
    model, loss, optimizer, targets = parts(name)
    loader = MiniBatchLoader((X, targets), 4, order="sequential")
    kind(model, loss, optimizer, loader, device="cpu", engine="eager").fit(2)
    return list(model.parameters())


def called(work: Callable[[], object]) -> tuple[set[Any], set[int], set[str]]:
    """What runs: code that gives tensors, built-in functions, and names of tensors' methods."""
    code, built_in, methods = set(), {}, set()

    def note(frame, event, value) -> None:
        if event == "return" and any(map(_is_number, _within(value))):
            code.add(frame.f_code)
        elif event == "c_call" and isinstance(value.__self__, Tensor):
            methods.add(value.__name__)
        elif event == "c_call":
            built_in[id(value)] = value

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return code, {id(f) for f in built_in.values()}, methods


def places(name: str) -> list[tuple[Any, str]]:
    """Where what is called in a plain loop can be replaced: an object, and a name in it."""
    made = parts(name)
    code, built_in, methods = called(lambda: by_hand(*made))
    modules = [m for key, m in sys.modules.items() if key.split(".")[0] == "torch" and m]
    model, loss, optimizer, _ = made
    used = [Tensor(), optimizer, loss, *model.modules()]
    kinds = dict.fromkeys(kind for one in used for kind in type(one).__mro__[:-1])
    own = {"clone", "detach"}  # which the project calls to copy data and to read losses
    found: list[tuple[Any, str]] = [(Tensor, key) for key in sorted(methods - own)]
    for holder in [*modules, *kinds]:
        for key, value in sorted(vars(holder).items(), key=str):
            if type(value) is BuiltinFunctionType and id(value) in built_in:
                found.append((holder, key))
            whole = value
            while type(whole) is FunctionType and whole.__code__ not in code:
                whole = getattr(whole, "__wrapped__", None)
            if type(whole) is FunctionType and whole.__module__.startswith("torch"):
                found.append((holder, key))
    return list({(id(holder), key): (holder, key) for holder, key in found}.values())


class Changed:
    """A function whose tensors are a little larger than those of the one that it replaces."""

    within = False

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.changes = 0

    def bound(self) -> Callable[..., Any]:
        return lambda *arguments, **options: self(*arguments, **options)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        value = self.function(*arguments, **options)
        if Changed.within or not any(map(_is_number, _within(value))):
            return value
        Changed.within = True
        try:
            self.changes += 1
            return value * 1.01 if isinstance(value, Tensor) else type(value)(map(_more, value))
        finally:
            Changed.within = False


def _within(value: Any) -> list[Any]:
    return list(value) if type(value) in (list, tuple) else [value]


def _is_number(value: Any) -> bool:
    return type(value) is Tensor and value.is_floating_point()


def _more(value: Any) -> Any:
    return value * 1.01 if _is_number(value) else value


@pytest.mark.few(1)
@pytest.mark.parametrize("name", RUNS)
def test_each_function_that_a_plain_update_calls(name, monkeypatch) -> None:
    changing = 0
    for holder, key in places(name):
        changed = Changed(getattr(holder, key))
        with monkeypatch.context() as patch:
            try:
                patch.setattr(holder, key, changed.bound())
            except (TypeError, AttributeError):
                continue  # of a class that is written in C
            try:
                plain = by_hand(*parts(name))
            except (RuntimeError, TypeError, AttributeError):
                continue  # PyTorch can't go on with it
            if not changed.changes or not all(p.isfinite().all() for p in plain):
                continue
            changing += 1
            for kind in (Trainer, Own):
                what = f"{getattr(holder, '__name__', holder)}.{key}, {kind.__name__}"
                assert all(map(torch.equal, ours(name, kind), plain)), what
    assert changing > 8
