"""Random number generators: seed them, and take and restore snapshots of all of them."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

_WORDS = 624  # of a Mersenne Twister's state


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, numpy and torch (every device)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@dataclass(frozen=True)
class RngState:
    """A snapshot of the global generators of Python, numpy, torch and one device.

    python: ``random.getstate()``; numpy: ``np.random.get_state()``; cpu: torch's, [5056] uint8;
    device: the device's own generator, or None for the CPU.
    """

    python: tuple[Any, ...]
    numpy: Any
    cpu: Tensor
    device: Tensor | None

    @classmethod
    def take(cls, device: torch.device) -> RngState:
        """The state of all generators as they stand."""
        return cls(
            python=random.getstate(),
            numpy=np.random.get_state(legacy=True),
            cpu=torch.get_rng_state(),
            device=None if device.type == "cpu" else _device_state(device),
        )

    def restore(self, device: torch.device) -> None:
        """Put all generators back to this state."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.cpu)
        if self.device is None:
            return
        if device.type == "cuda":
            torch.cuda.set_rng_state(self.device, device)
        elif device.type == "mps":
            torch.mps.set_rng_state(self.device)

    def is_current(self, device: torch.device) -> bool:
        """Whether nobody has drawn a number since."""
        now = RngState.take(device)
        return (
            self.python == now.python
            and all(np.array_equal(a, b) for a, b in zip(self.numpy, now.numpy, strict=True))
            and torch.equal(self.cpu, now.cpu)
            and (self.device is None or now.device is None or torch.equal(self.device, now.device))
        )

    def tensors(self) -> dict[str, Tensor]:
        """The same as tensors, for a file: a Mersenne Twister as [627] int64.

        These are its 624 words, its place among them, whether a normal number is left over,
        and the bits of that number.
        """
        _, words, left = self.python
        _, key, place, has_left, cached = self.numpy
        kept = {
            "python": _twister(words[:_WORDS], words[_WORDS], left),
            "numpy": _twister(key, place, cached if has_left else None),
            "cpu": self.cpu.clone(),
        }
        return kept if self.device is None else kept | {"device": self.device.clone()}

    @classmethod
    def of_tensors(cls, kept: Mapping[str, Tensor]) -> RngState:
        """What :meth:`tensors` gave. Raises ValueError or KeyError for anything else."""
        words, place, left = _parts(kept["python"])
        key, where, cached = _parts(kept["numpy"])
        numpy = ("MT19937", np.array(key, np.uint32), where, int(cached is not None), cached or 0.0)
        return cls((3, (*words, place), left), numpy, kept["cpu"], kept.get("device"))


def _twister(words: Any, place: int, left: float | None) -> Tensor:
    bits = torch.tensor([left or 0.0], dtype=torch.float64, device="cpu").view(torch.int64)
    numbers = np.array([place, left is not None], np.int64)
    return torch.cat([torch.from_numpy(np.concatenate([np.array(words, np.int64), numbers])), bits])


def _parts(kept: Tensor) -> tuple[list[int], int, float | None]:
    if kept.dtype != torch.int64 or kept.shape != (_WORDS + 3,):
        raise ValueError("a generator's state has another shape")
    *words, place, has_left, _ = kept.tolist()
    # All words 0 would only give 0, and drawing a normal number would never end.
    if not (0 <= min(words) <= max(words) < 2**32 and any(words) and 0 <= place <= _WORDS):
        raise ValueError("a generator's state is out of its range")
    left = float(kept[-1:].view(torch.float64)) if has_left else None
    return words, place, left


def _device_state(device: torch.device) -> Tensor | None:
    if device.type == "cuda":
        return torch.cuda.get_rng_state(device)
    if device.type == "mps":
        return torch.mps.get_rng_state()
    return None
