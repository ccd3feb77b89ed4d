"""The examples of research code end with the bits of the plain loops that stand beside them."""

import ast
import copy
import runpy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.paths import ROOT
from torch import Tensor, nn

from gdtrain import Callback, Checkpoints

HOME = ROOT / "examples" / "research"
FILES = {file.stem: file for file in sorted(HOME.glob("*/*.py"))}
LINES = 60
# Those that are not to the bit: other kernels, or another way to the same numbers.
TOLERANCES = {"compiled": 1e-10, "resnet_curvature": 1e-6, "imbalance": 1e-6, "multi_task": 1e-12}


def example(name: str) -> SimpleNamespace:
    """What stands in an example."""
    return SimpleNamespace(**runpy.run_path(str(FILES[name]), run_name=name))


def network(outputs: int = 1, inputs: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, 8), nn.Tanh(), nn.Linear(8, outputs)).double()


def made(name: str, kind: str, *sizes: int) -> nn.Module:
    """A model that an example brings with it."""
    torch.manual_seed(0)
    model: nn.Module = getattr(example(name), kind)(*sizes).double()
    return model


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).double()


def whole(high: int, *shape: int) -> Tensor:
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(2))


def numbers() -> tuple[Tensor, ...]:
    return drawn(50, 3), drawn(50, 3).sum(1, keepdim=True)


def labels() -> tuple[Tensor, ...]:
    return drawn(50, 3), torch.arange(50) % 3


def sentences() -> tuple[dict[str, Tensor], Tensor]:
    length, tags = whole(5, 20) + 1, whole(3, 20, 6)
    tags[torch.arange(6) >= length[:, None]] = -100
    return {"tokens": whole(12, 20, 6), "length": length}, tags


def sequences() -> list[tuple[Tensor, Tensor]]:
    lengths = (whole(5, 20) + 1).tolist()
    return [(drawn(n, 2), drawn(n, 2).sum()[None]) for n in lengths]


def players() -> nn.ModuleDict:
    return nn.ModuleDict({"critic": network(), "generator": network(3, 4)})


def recurrent() -> nn.RNN:
    torch.manual_seed(0)
    return nn.RNN(2, 2, batch_first=True).double()


PROBLEMS: dict[str, Any] = {
    "sam": lambda: (network(), *numbers()),
    "sgld": lambda: (network(), *numbers()),
    "lookahead": lambda: (network(), *numbers()),
    "half_precision": lambda: (network().float(), *(t.float() for t in numbers())),
    "compiled": lambda: (network(), *numbers()),
    "gan": lambda: (players(), drawn(50, 3)),
    "fine_tuning": lambda: (network(), *numbers()),
    "ema_teacher": lambda: (network(), *numbers()),
    "distillation": lambda: (network(3), *labels()),
    "adversarial": lambda: (network(3), *labels()),
    "physics_informed": lambda: (network(inputs=1), torch.linspace(0, 3, 30).double()[:, None]),
    "contrastive": lambda: (network(5), drawn(50, 3), drawn(50, 3) + 0.1),
    "imbalance": lambda: (network(), drawn(60, 3), (drawn(60, 1) > 1).double()),
    "multi_task": lambda: (made("multi_task", "TwoHeads", 3, 3), *labels(), drawn(50, 1)),
    "resnet_curvature": lambda: (
        *(made("resnet_curvature", "resnet", 2, 3), drawn(12, 1, 6, 6), torch.arange(12) % 3),
    ),
    "curriculum": lambda: (network(), *numbers()),
    "importance": lambda: (network(), *numbers()),
    "characters": lambda: (
        *(made("characters", "Gpt", 10, 6), whole(10, 24, 6), whole(10, 24, 6).roll(-1, 1)),
    ),
    "padded": lambda: (made("padded", "Tagger", 12, 3), *sentences()),
    "packed_lstm": lambda: (made("packed_lstm", "Packed", 2), sequences()),
    "truncated": lambda: (recurrent(), drawn(24, 6, 2)),
}


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the plain loops are."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


def test_every_example_is_looked_at() -> None:
    assert set(FILES) == set(PROBLEMS)


@pytest.mark.parametrize("name", FILES)
def test_an_example_can_be_read_at_a_glance(name: str) -> None:
    assert len(FILES[name].read_text("utf-8").splitlines()) < LINES


# ── the same end ────────────────────────────────────────────────────────────────────────────


def ends_of(given: Any) -> list[Tensor]:
    """The tensors, and numbers as tensors, of what an example ends with."""
    if given is None:
        return []
    if isinstance(given, nn.Module):
        return list(given.state_dict().values())
    values = given.values() if isinstance(given, dict) else [given]
    return [torch.as_tensor(value, dtype=torch.float64) for value in values]


@pytest.mark.few(7)
@pytest.mark.parametrize("name", PROBLEMS)
def test_it_ends_as_the_plain_loop_does(name: str) -> None:
    module, ends = example(name), []
    for way in (module.with_gdtrain, module.by_hand):
        model, *data = PROBLEMS[name]()
        torch.manual_seed(5)
        other = way(model, *data)
        ends.append([*ends_of(model), *ends_of(other), torch.get_rng_state()])
    for mine, theirs in zip(*ends, strict=True):
        if mine.is_floating_point() and name in TOLERANCES:
            assert torch.allclose(mine, theirs, rtol=TOLERANCES[name], atol=1e-12)
        else:
            assert torch.equal(mine, theirs)
    if name != "resnet_curvature":
        before = ends_of(PROBLEMS[name]()[0])
        assert not any(map(torch.equal, before, ends[0]))


@pytest.mark.parametrize("size", [1, 5, 16])
def test_contrastive_learning_is_exact_in_microbatches(size: int) -> None:
    module, (model, *data) = example("contrastive"), PROBLEMS["contrastive"]()
    whole, cut = copy.deepcopy(model), copy.deepcopy(model)
    module.by_hand(whole, *data)
    module.with_gdtrain(cut, *data, microbatch_size=size)
    for one, other in zip(whole.parameters(), cut.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-12)


class StopsAt(Callback):
    def __init__(self, step: int) -> None:
        super().__init__(every_n_steps=step)

    def on_safe_point(self, trainer: Any) -> None:
        trainer.stop("here")


@pytest.mark.parametrize("step", [1, 5, 6, 10])
def test_a_carried_state_goes_on_with_the_same_bits(step: int, tmp_path) -> None:
    module = example("truncated")
    model, windows = PROBLEMS["truncated"]()
    module.by_hand(model, windows)
    first = module.trainer_of(*PROBLEMS["truncated"]())
    first.callbacks += [StopsAt(step), Checkpoints(tmp_path)]
    first.fit(module.EPOCHS)
    assert first.step == step
    second = module.trainer_of(*PROBLEMS["truncated"]())
    second.fit(module.EPOCHS, resume=tmp_path)
    assert all(map(torch.equal, second.model.parameters(), model.parameters()))


# ── no more statements than the plain loop ──────────────────────────────────────────────────


def statements(name: str) -> tuple[int, int]:
    """Of the training code with gdtrain, and of the plain loop, without what both use.

    Each is a function, and the functions and classes that it alone needs, to the last ``def``.
    """
    tree = ast.parse(FILES[name].read_text("utf-8"))
    parts = {
        node.name: node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }

    def needed(start: str) -> set[str]:
        found, waiting = set(), [start]
        while waiting:
            found.add(one := waiting.pop())
            used = {node.id for node in ast.walk(parts[one]) if isinstance(node, ast.Name)}
            waiting += (used & set(parts)) - found
        return found

    ours, theirs = needed("with_gdtrain"), needed("by_hand")
    both = ours & theirs
    return count(parts[one] for one in ours - both), count(parts[one] for one in theirs - both)


def count(parts: Any) -> int:
    every = [node for part in parts for node in ast.walk(part) if isinstance(node, ast.stmt)]
    return len([node for node in every if not is_text(node)])


def is_text(node: ast.stmt) -> bool:
    """Whether it is a docstring."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


@pytest.mark.parametrize("name", FILES)
def test_it_takes_no_more_statements_than_the_plain_loop(name: str) -> None:
    ours, theirs = statements(name)
    assert ours <= theirs


def test_the_count_sees_every_statement() -> None:
    source = 'class A:\n    """Text."""\n\n    def f(self):\n        if 1:\n            return 2\n'
    assert count(ast.parse(source).body) == 4
