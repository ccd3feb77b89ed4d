"""Trainers of one structure share what is compiled, in a process and by the user's cache folder."""

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import processes
from torch import nn
from torch.nn import functional

from gdtrain import MiniBatchLoader, Trainer

jax = pytest.importorskip("jax")
user_cache = pytest.importorskip("gdtrain.training.engines.xla.user_cache")
COMPILED = "/jax/core/compile/backend_compile_duration"


_seen: list[str] = []


def _note(event: str, seconds: float, **others: Any) -> None:
    if event == COMPILED:
        _seen.append(event)


jax.monitoring.register_event_duration_secs_listener(_note)  # jax 0.8 can't take one away


@pytest.fixture
def compiled(nothing_compiled: None) -> list[str]:
    """Gets an item for each program that XLA compiles, or reads from a cache."""
    _seen.clear()
    return _seen


def data(rows: int = 10, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 3, generator=generator)
    return x, x.sin().sum(1, keepdim=True)


def trained(
    layers: Callable[[], list[nn.Module]],
    engine: str = "scan",
    loss: Any = None,
    rows: int = 10,
    seed: int = 0,
    **settings: Any,
) -> list[torch.Tensor]:
    """The weights after two epochs in batches of 4, of which the last may be smaller."""
    torch.manual_seed(seed)
    model = nn.Sequential(*layers())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, **settings)
    loader = MiniBatchLoader(data(rows, seed), 4)
    Trainer(model, loss or nn.MSELoss(), optimizer, loader, device="cpu", engine=engine).fit(2)
    return [tensor.detach() for tensor in model.state_dict().values()]


def plain() -> list[nn.Module]:
    return [nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)]


def assert_as_eager(layers: Callable[[], list[nn.Module]], **settings: Any) -> None:
    for one, other in zip(
        trained(layers, **settings), trained(layers, "eager", **settings), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_the_second_trainer_of_a_structure_compiles_nothing(compiled: list[str]) -> None:
    assert_as_eager(plain, seed=1)
    first = len(compiled)
    assert_as_eager(plain, seed=2)  # other weights, other data
    assert first > 0
    assert len(compiled) == first


@pytest.mark.few(1)
@pytest.mark.parametrize(
    "other",
    [
        {"momentum": 0.9},
        {"rows": 11},
        {"loss": functional.l1_loss},
        {"layers": lambda: [nn.Linear(3, 5), nn.Sigmoid(), nn.Linear(5, 1)]},
        {"layers": lambda: [nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 1)]},
    ],
    ids=["optimizer", "rows", "loss", "activation", "width"],
)
def test_another_structure_is_not_taken_for_it(other: dict[str, Any], compiled: list[str]) -> None:
    trained(plain)
    before = len(compiled)
    assert_as_eager(**{"layers": plain, **other})
    assert len(compiled) > before


def test_layers_that_start_alike_are_told_apart_by_their_settings() -> None:
    """A plain mean over batches, and statistics of the last one, are the same in the first step."""
    for momentum in (1.0, None):
        layers = [nn.BatchNorm1d(3, momentum=momentum), nn.Linear(3, 1)]
        assert_as_eager(lambda layers=layers: copy.deepcopy(layers), rows=8)


def test_code_of_somebody_s_own_is_captured_anew() -> None:
    def scaled(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return factor * functional.mse_loss(outputs, targets)

    for factor in (1.0, 2.0):  # noqa: B007  # which the loss reads
        assert_as_eager(plain, loss=scaled, rows=8)


# ── later processes ─────────────────────────────────────────────────────────────────────────

PROGRAM = """
import sys, torch, warnings
from torch import nn
from gdtrain import MiniBatchLoader, Trainer
warnings.simplefilter("error")
torch.set_num_threads(1)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
data = torch.randn(10, 2), torch.randn(10, 1)
loader, optimizer = MiniBatchLoader(data, 4), torch.optim.SGD(model.parameters(), lr=0.1)
Trainer(model, nn.MSELoss(), optimizer, loader, device="cpu", engine="scan").fit(2)
print("torch._dynamo" in sys.modules, [p.tolist() for p in model.parameters()])
"""


def run(home: Path) -> tuple[bool, str]:
    """Whether the process captured the step, which imports torch's compiler, and the weights."""
    done = processes.run("-c", PROGRAM, env={"XDG_CACHE_HOME": str(home)})
    assert done.returncode == 0, done.err
    assert done.err == ""
    captured, weights = done.out.split(maxsplit=1)
    return captured == "True", weights


def test_a_later_process_captures_nothing_and_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    exec(PROGRAM, {})
    _, weights = capsys.readouterr().out.split(maxsplit=1)
    assert run(tmp_path) == (False, weights)
    own = tmp_path / "gdtrain"
    assert own.stat().st_mode & 0o777 == 0o700
    for file in own.glob("*/*"):  # damaged files are compiled again
        file.write_bytes(file.read_bytes()[:-20])
    assert run(tmp_path) == (True, weights)
    assert run(tmp_path) == (False, weights)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_the_folder_is_the_user_s_own(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = user_cache.folder()
    assert there is not None
    assert there.parent == home / ".cache" / "gdtrain"
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "elsewhere"))
    there = user_cache.folder()
    assert there is not None
    assert there.parent == home / "elsewhere" / "gdtrain"


def test_a_relative_folder_is_left_aside(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "caches")
    there = user_cache.folder()
    assert there is not None
    assert there.parent == home / ".cache" / "gdtrain"


def test_nothing_is_kept_without_a_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    assert user_cache.folder() is None
    user_cache.write("name", b"content")
    assert user_cache.read("name") is None


def test_a_folder_that_others_may_read_or_write_is_not_used(home: Path) -> None:
    assert user_cache.folder() is not None
    (home / ".cache" / "gdtrain").chmod(0o750)
    assert user_cache.folder() is None


def test_a_folder_that_is_a_link_is_not_used(home: Path) -> None:
    (home / "other").mkdir(mode=0o700)
    (home / ".cache").mkdir()
    (home / ".cache" / "gdtrain").symlink_to(home / "other")
    assert user_cache.folder() is None


def test_a_folder_that_can_t_be_made_is_done_without(home: Path) -> None:
    (home / ".cache").write_text("a file")
    assert user_cache.folder() is None
    user_cache.write("name", b"content")


def test_the_oldest_files_go(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_cache, "_MOST_FILES", 2)
    there = user_cache.folder()
    assert there is not None
    for number in range(3):
        user_cache.write(f"name{number}", b"content")
        os.utime(there / f"name{number}", (number, number))
    user_cache.write("last", b"content")
    assert user_cache.read("name0") is None
    assert user_cache.read("last") == b"content"
