"""Orders that somebody else gives: index by index, or epoch by epoch by callables and samplers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set, Sized
from itertools import islice
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, Sampler

from gdtrain.data.orders.permutation import Draws
from gdtrain.errors import ConfigError

# A sampler that has given so many draws for each sample, and a million, has no end.
_ENDLESS = 1000


class AskedOrder:
    """An order that is asked for its indices, once in an epoch, when the epoch begins.

    source: ``epoch -> indices``, or an iterable of indices, such as a torch ``Sampler``, which is
    iterated once an epoch; one that has ``set_epoch`` is told the epoch before.

    It may draw random numbers, keep count, or look at the model: so nothing that merely wants to
    know sizes may ask it, and what it gave stays with whoever trains; see :meth:`expected`.
    """

    def __init__(self, source: Any, num_samples: int) -> None:
        _check_source(source)
        self.source = source
        self.num_samples = num_samples
        self._ahead: tuple[int, Tensor | Draws] | None = None
        self._newest: tuple[int, int] | None = None  # an epoch, and how many draws it has

    def take(self, epoch: int) -> Tensor | Draws:
        """The indices of ``epoch``; asks, unless :meth:`count` has. Raises ConfigError for others.

        Whoever takes them keeps them: they are not given twice.
        """
        held, self._ahead = self._ahead, None
        indices = held[1] if held is not None and held[0] == epoch else self._ask(epoch)
        self._newest = epoch, len(indices)
        return indices

    def count(self, epoch: int) -> int:
        """How many draws ``epoch`` has; if need be asks, and keeps the answer for :meth:`take`.

        For an epoch that has been taken, or one before it, the newest number that is known.
        """
        if self._newest is not None and self._newest[0] >= epoch:
            return self._newest[1]
        if self._promised is not None:
            return self._promised
        if self._ahead is None or self._ahead[0] != epoch:
            self._ahead = epoch, self._ask(epoch)
        return len(self._ahead[1])

    def expected(self) -> int:
        """How many draws an epoch has, as far as is known without asking.

        As many as in the newest epoch; before the first, as many as a sampler's ``len`` says, or
        else one for each sample.
        """
        if self._newest is not None:
            return self._newest[1]
        return self.num_samples if self._promised is None else self._promised

    def state_dict(self) -> dict[str, Any]:
        """What the orders of later epochs depend on, as far as the source tells.

        What its own ``state_dict`` gives, and the state of its ``generator``, as torch's samplers
        have one.
        """
        state: dict[str, Any] = {}
        if _keeps_state(self.source):
            state["source"] = self.source.state_dict()
        if (generator := _generator(self.source)) is not None:
            state["generator"] = generator.get_state()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave; raises what the source raises if it can't."""
        if "source" in state and _keeps_state(self.source):
            self.source.load_state_dict(state["source"])
        generator = _generator(self.source)
        if "generator" in state and generator is not None:
            generator.set_state(state["generator"])
        self._ahead = None

    def __repr__(self) -> str:
        return "a callable" if _is_callable(self.source) else f"a {type(self.source).__name__}"

    @property
    def _promised(self) -> int | None:
        sized = isinstance(self.source, Sized) and not _is_callable(self.source)
        return len(self.source) if sized else None

    def _ask(self, epoch: int) -> Tensor | Draws:
        if _is_callable(self.source):
            given = self.source(epoch)
        else:
            given = self.source
            if hasattr(given, "set_epoch"):
                given.set_epoch(epoch)
        if not isinstance(given, Tensor) and (isinstance(given, Iterator) or gives_indices(given)):
            given = self._listed(given)
        return check_indices(given, self.num_samples)

    def _listed(self, given: Iterable[Any]) -> list[Any]:
        """The indices of an iterable. Raises ConfigError if it gives batches, or has no end."""
        most = _ENDLESS * self.num_samples + 1_000_000
        indices = list(islice(given, most + 1))
        if len(indices) > most:
            text = f"{self!r} gave over {most:,} indices of {self.num_samples:,} samples"
            raise ConfigError.of("order", f"{text}, and no end is seen; give one that ends")
        if indices and isinstance(indices[0], list | tuple):
            text = f"{self!r} gives batches; give one of single samples, and the loader batch_size"
            raise ConfigError.of("order", text)
        return indices


def gives_indices(order: Any) -> bool:
    """Whether ``order`` is one that is asked, and no row of indices itself."""
    if isinstance(order, Sampler) or callable(order):
        return True
    if isinstance(order, Sequence | Set | Mapping | Tensor | Draws | Iterator):
        return False
    return hasattr(order, "__iter__") and not hasattr(order, "__array__")


def _check_source(source: Any) -> None:
    """Raise ConfigError for a class, or a sampler that does a loader's work."""
    name = source.__name__ if isinstance(source, type) else type(source).__name__
    message = None
    if isinstance(source, type):
        message = f"{name} is a class; give one that is made, as in {name}(…)"
    elif isinstance(source, BatchSampler):
        message = f"a {name} gives batches; give its sampler, and the loader its batch_size"
    elif getattr(source, "num_replicas", 1) != 1:
        message = f"a {name} gives one process's share, and batches are shared anyway; leave it out"
    if message is not None:
        raise ConfigError.of("order", message)


def _is_callable(source: Any) -> bool:
    return callable(source) and not isinstance(source, Sampler)


def _keeps_state(source: Any) -> bool:
    return hasattr(source, "state_dict") and hasattr(source, "load_state_dict")


def _generator(source: Any) -> torch.Generator | None:
    found = getattr(source, "generator", None)
    return found if isinstance(found, torch.Generator) else None


def check_indices(values: Any, num_samples: int) -> Tensor | Draws:
    """Explicit indices as an int64 tensor [draws]; raises ConfigError if one can't be used."""
    if isinstance(values, Draws):
        if values.num_samples != num_samples or not len(values):
            raise ConfigError.of("order", f"{values!r} are no order of {num_samples} samples")
        return values
    if _is_row(values):  # as in each epoch of an order that is asked
        least, most = torch.aminmax(values)
        if least.item() >= 0 and most.item() < num_samples:
            return values.clone()
    try:
        array = values.cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError.of(
            "order", "explicit indices must be one row of whole numbers; these make no array"
        ) from error
    if isinstance(values, bool):
        text = f"must be the name of an order, such as 'reshuffle' or 'sequential'; got {values}"
        raise ConfigError.of("order", text)
    if array.ndim != 1 or array.size == 0:
        raise ConfigError.of(
            "order",
            f"explicit indices must be one non-empty row, got shape {list(array.shape)}",
        )
    if array.dtype.kind not in "iu":
        raise ConfigError.of("order", f"explicit indices must be whole numbers, got {array.dtype}")
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= num_samples:
        raise ConfigError.of(
            "order",
            f"explicit indices must be in 0 … {num_samples - 1}, got {low if low < 0 else high}",
        )
    # A copy in any case, so that the caller's later changes to the array change no plan.
    return torch.from_numpy(array.astype(np.int64, order="C"))


def _is_row(values: Any) -> TypeGuard[Tensor]:
    """Whether they are one row of whole numbers, and some, as PyTorch has them."""
    return (
        type(values) is Tensor
        and values.dtype is torch.int64
        and values.ndim == 1
        and values.is_cpu
        and values.layout is torch.strided
        and values.numel() > 0
    )
