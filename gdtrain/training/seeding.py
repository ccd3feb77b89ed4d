"""Random number generators: seed them, and take and restore snapshots of all of them."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, numpy and torch (every device)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@dataclass(frozen=True)
class RngState:
    """A snapshot of the global generators of Python, numpy, torch and one device.

    python: ``random.getstate()``; numpy: ``np.random.get_state()``, its key as whole numbers;
    cpu: torch's, [5056] uint8; device: the device's own generator, or None for the CPU.
    """

    python: tuple[Any, ...]
    numpy: tuple[Any, ...]
    cpu: Tensor
    device: Tensor | None

    @classmethod
    def take(cls, device: torch.device) -> RngState:
        """The state of all generators as they stand."""
        return cls(
            python=random.getstate(),
            numpy=_numpy_state(),
            cpu=torch.get_rng_state(),
            device=_device_state(device),
        )

    def restore(self, device: torch.device) -> None:
        """Put all generators back to this state."""
        random.setstate(self.python)
        name, key, *rest = self.numpy
        np.random.set_state((name, np.array(key, dtype=np.uint32), *rest))
        torch.set_rng_state(self.cpu)
        if self.device is None:
            return
        if device.type == "cuda":
            torch.cuda.set_rng_state(self.device, device)
        elif device.type == "mps":
            torch.mps.set_rng_state(self.device)


def _numpy_state() -> tuple[Any, ...]:
    name, key, *rest = np.random.get_state(legacy=True)
    return (name, tuple(np.asarray(key).tolist()), *rest)


def _device_state(device: torch.device) -> Tensor | None:
    if device.type == "cuda":
        return torch.cuda.get_rng_state(device)
    if device.type == "mps":
        return torch.mps.get_rng_state()
    return None
