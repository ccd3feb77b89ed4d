"""Checkpoints damaged in every way, and what is loaded in their place."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gdtrain.checkpoint.checkpoints import CheckpointStore
from gdtrain.errors import CheckpointError
from helpers.faults.fake_disk import fast_directory
from helpers.faults.power_cuts import same

TENSORS, STATE, BEST = "tensors.safetensors", "state.json", "best.json"
OLD, NEW = "step-0000000001", "step-0000000002"

# A damage of one file: its name, what was done, and the function that does it, on the directory.
Damage = tuple[str, str, Callable[[Path], None]]


def state_of(label: int) -> dict[str, Any]:
    """About 400 kB of tensors and 40 kB of values."""
    generator = torch.Generator().manual_seed(label)
    return {
        "model": {"weight": torch.randn(300, 300, generator=generator), "n": torch.tensor(label)},
        "mask": torch.rand(1000, generator=generator) > 0.5,
        "history": [{"epoch": e, "train_loss": label / (e + 3)} for e in range(400)],
        "label": label,
    }


def flips(number: int, sizes: dict[str, int], seed: int = 0) -> Iterator[Damage]:
    """Single bits at seeded places: half in each file, and each header's bytes for certain."""
    rng = random.Random(seed)
    for i in range(number):
        name = (TENSORS, STATE)[i % 2]
        size = sizes[name]
        early = rng.randrange(min(size, 400)) if i % 8 < 2 else rng.randrange(size)
        yield name, f"bit flip at byte {early}", _flip(name, early, rng.randrange(8))


def _flip(name: str, byte: int, bit: int) -> Callable[[Path], None]:
    def do(directory: Path) -> None:
        with (directory / name).open("r+b") as file:
            file.seek(byte)
            old = file.read(1)[0]
            file.seek(byte)
            file.write(bytes([old ^ (1 << bit)]))

    return do


def truncations(sizes: dict[str, int], every: int = 4096) -> Iterator[Damage]:
    """To every multiple of ``every`` bytes, and to one byte less than whole."""
    for name, size in sizes.items():
        for length in sorted({*range(0, size, every), 1, 7, 8, 9, size - 1}):
            yield name, f"truncated to {length} bytes", _resize(name, length)
            # Of the same length, but the end was never written.
            yield name, f"zeros from byte {length}", _resize(name, length, size)


def _resize(name: str, *lengths: int) -> Callable[[Path], None]:
    def do(directory: Path) -> None:
        with (directory / name).open("r+b") as file:
            for length in lengths:
                file.truncate(length)

    return do


def _append(name: str, content: bytes) -> Callable[[Path], None]:
    def do(directory: Path) -> None:
        with (directory / name).open("ab") as file:
            file.write(content)

    return do


def _swap(name: str) -> Callable[[Path], None]:
    def do(directory: Path) -> None:
        near, far = directory.parent / OLD, directory.parent.parent / OLD
        shutil.copyfile((near if near.is_dir() else far) / name, directory / name)

    return do


def _become(name: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    def do(directory: Path) -> None:
        (directory / name).unlink()
        make(directory / name)

    return do


def other_damages() -> Iterator[Damage]:
    """Files that are longer, swapped between checkpoints, missing or something else."""
    for name in (TENSORS, STATE):
        for content in (b"\0", b"\n", b" ", b"{}", bytes(4096)):
            yield name, f"extended by {content[:2]!r}", _append(name, content)
        yield name, "of another checkpoint", _swap(name)
        yield name, "missing", lambda directory, name=name: (directory / name).unlink()
        yield name, "a directory", _become(name, Path.mkdir)
        yield name, "empty", _become(name, Path.touch)


@dataclass
class Figures:
    cases: int = 0
    missed: int = 0
    problems: list[str] = field(default_factory=list)

    def blame(self, problem: str) -> None:
        self.missed += 1
        self.problems.append(problem)


def sizes_of(directory: Path) -> dict[str, int]:
    return {name: (directory / name).stat().st_size for name in (TENSORS, STATE)}


def damage_each(damages: Callable[[dict[str, int]], Iterator[Damage]]) -> Figures:
    """Damage the newer of two checkpoints: the older is used, and the damaged file is named."""
    figures = Figures()
    with fast_directory() as place:
        store = CheckpointStore(Path(place) / "checkpoints", 2)
        for label in (1, 2):
            store.save(label, state_of(label))
        old, new, whole = store.directory / OLD, store.directory / NEW, Path(place) / "whole"
        shutil.copytree(new, whole)
        for name, what, do in damages(sizes_of(new)):
            figures.cases += 1
            before = (new / name).read_bytes()
            do(new)
            after = (new / name).read_bytes() if (new / name).is_file() else None
            if after == before:
                figures.cases -= 1  # zeros that were zeros before
                continue
            path, state, skipped = store.load_newest()
            if path != old or not same(state, state_of(1)):
                figures.blame(f"{name}, {what}: {path} was loaded")
            elif len(skipped) != 1 or not _is_named(new / name, skipped[0]):
                figures.blame(f"{name}, {what}: skipped with {skipped}")
            shutil.rmtree(new)
            shutil.copytree(whole, new)
    return figures


def _is_named(path: Path, said: str) -> bool:
    return str(path.parent) in said and path.name in said


def damage_all(damages: Callable[[dict[str, int]], Iterator[Damage]]) -> Figures:
    """Damage the only checkpoint there is: nothing is loaded, and the file is named."""
    figures = Figures()
    with fast_directory() as place:
        store = CheckpointStore(Path(place) / "checkpoints", 1)
        store.save(2, state_of(2))
        CheckpointStore(Path(place)).save(1, state_of(1))  # for swapped files
        new, whole = store.directory / NEW, Path(place) / "whole"
        shutil.copytree(new, whole)
        for name, what, do in damages(sizes_of(new)):
            figures.cases += 1
            do(new)
            try:
                store.load_newest()
                figures.blame(f"{name}, {what}: was loaded")
            except CheckpointError as error:
                if not _is_named(new / name, str(error)):
                    figures.blame(f"{name}, {what}: {error}")
            shutil.rmtree(new)
            shutil.copytree(whole, new)
    return figures


def flip_the_mark() -> Figures:
    """Every bit of best.json: the best checkpoint is never lost, and never another one."""
    figures = Figures()
    with fast_directory() as place:
        kept = Path(place) / "kept"
        store = CheckpointStore(kept, 1)
        store.mark_best(store.save(1, {"label": 1}), 0.25)
        store.save(2, {"label": 2})
        size = (kept / BEST).stat().st_size
        for byte in range(size):
            for bit in range(8):
                figures.cases += 1
                work = Path(place) / "work"
                shutil.copytree(kept, work)
                _flip(BEST, byte, bit)(work)
                store = CheckpointStore(work, 1)
                try:
                    figures.blame(f"byte {byte}, bit {bit}: {store.best()}")
                except CheckpointError as error:
                    if str(work / BEST) not in str(error):
                        figures.blame(f"byte {byte}, bit {bit}: {error}")
                store.save(3, {"label": 3})
                if not (work / OLD).is_dir():
                    figures.blame(f"byte {byte}, bit {bit}: the best one was removed")
                shutil.rmtree(work)
    return figures
