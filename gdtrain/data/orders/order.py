"""Which sample comes when: orders as pure functions of (number of samples, seed, epoch)."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from threading import local
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from gdtrain import registry
from gdtrain.data.checks import whole_number
from gdtrain.data.orders.asked_order import AskedOrder, check_indices, gives_indices
from gdtrain.data.orders.permutation import Draws, Permutation, RowGroups
from gdtrain.data.orders.permutation import Replacement as UniformDraws
from gdtrain.errors import ConfigError
from gdtrain.registry import register_order
from gdtrain.settings import NamedSettings

if TYPE_CHECKING:
    from gdtrain.data.samples import Samples


class Weighted:
    r"""An order in which sample i is drawn with a probability proportional to its weight.

    weights: [n], one for each sample, as a tensor, an array or a list of numbers ≥ 0, copied.
    replacement: with it, the draws of an epoch are independent, each with
    P(i) = w_i / Σ_j w_j, by the inverse of the distribution function (Devroye, 1986, "Non-uniform
    random variate generation", chapter III.2). Without it, no sample comes twice, and each draw is
    proportional to the weights of the remaining samples; all at once, by the order of the
    times e_i / w_i, e_i ~ Exp(1) (Efraimidis and Spirakis, 2006, "Weighted random sampling with a
    reservoir", with ln u = -e). A sample of weight 0 is never drawn.
    draws: the number of draws in an epoch; if left out, n, or without replacement all samples of
    weight > 0.

    As for every order, an epoch's draws depend only on the loader's seed and the epoch:
    ``MiniBatchLoader((X, y), 64, order=Weighted.balanced(y), seed=0)`` draws the classes of y
    equally often. Raises ConfigError for weights that can't be used.

    >>> import torch
    >>> from gdtrain import SampleLoader, Weighted
    >>> data = torch.arange(3.0).view(3, 1), torch.zeros(3, 1)
    >>> drawn = SampleLoader(data, order=Weighted([0.0, 1.0, 3.0], draws=1000))
    >>> counts = torch.bincount(torch.cat([batch.indices for batch in drawn]), minlength=3)
    >>> int(counts[0]), bool(2 < counts[2] / counts[1] < 4)
    (0, True)
    """

    def __init__(self, weights: Any, *, replacement: bool = True, draws: int | None = None) -> None:
        self.weights = _checked(weights)
        self.replacement = replacement
        positive = int((self.weights > 0).sum())
        if draws is None:
            draws = len(self.weights) if replacement else positive
        self.draws = whole_number("draws", draws, minimum=1)
        if not replacement and self.draws > positive:
            raise ConfigError.of(
                "draws",
                f"must be <= {positive}, the samples of weight > 0, without replacement; "
                f"got {self.draws}",
            )

    @classmethod
    def balanced(
        cls, labels: Any, *, replacement: bool = True, draws: int | None = None
    ) -> Weighted:
        """The order in which all classes are equally frequent: w_i = 1 / (samples of i's class).

        labels: [n] class indices, as a tensor, an array or a list. ``order="class_balanced"`` is
        this of a loader's own targets. Raises ConfigError for labels that are no whole numbers.

        >>> order = Weighted.balanced([0, 0, 0, 1], draws=1000)
        >>> order.weights.tolist() == [1 / 3, 1 / 3, 1 / 3, 1.0]
        True
        """
        row = torch.as_tensor(labels, device="cpu")
        if row.ndim == 2 and row.shape[1] == 1:
            row = row[:, 0]
        if row.ndim != 1 or (row.is_floating_point() and not torch.equal(row, row.round())):
            message = f"must be one class index for each sample, got {row.dtype} {list(row.shape)}"
            raise ConfigError.of("labels", message)
        _, places, counts = np.unique(row.numpy(), return_inverse=True, return_counts=True)
        return cls(1.0 / counts[places], replacement=replacement, draws=draws)

    def __len__(self) -> int:
        return self.draws

    def __repr__(self) -> str:
        how = "with" if self.replacement else "without"
        checksum = zlib.crc32(self.weights.numpy().tobytes())
        return f"{self.draws} draws {how} replacement by {len(self.weights)} weights {checksum:08x}"

    def checked(self, num_samples: int) -> Weighted:
        """Itself. Raises ConfigError if these are not the weights of so many samples."""
        if len(self.weights) != num_samples:
            message = f"{len(self.weights)} weights for {num_samples} samples; give one for each"
            raise ConfigError.of("order", message)
        return self

    def draw(self, generator: torch.Generator) -> Tensor:
        """The sample indices of an epoch, [draws] int64."""
        if not self.replacement:
            times = torch.empty_like(self.weights).exponential_(generator=generator) / self.weights
            return times.argsort(stable=True)[: self.draws]
        ends = self.weights.cumsum(0)
        drawn = torch.rand(self.draws, dtype=torch.float64, generator=generator, device="cpu")
        places = drawn * ends[-1]
        # The first sample whose end lies beyond the place; rounding must not lead past the last.
        last = int(self.weights.nonzero()[-1])
        return torch.searchsorted(ends, places, right=True).clamp_(max=last)


def _checked(weights: Any) -> Tensor:
    """The weights as a tensor [n] float64 of its own."""
    try:
        if isinstance(weights, Tensor):
            weights = weights.detach().cpu().numpy()
        row = torch.from_numpy(np.array(weights, np.float64))  # a copy
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError.of("weights", "must be one row of numbers; these make none") from error
    if row.ndim != 1 or not len(row):
        message = f"must be one non-empty row of numbers, got shape {list(row.shape)}"
        raise ConfigError.of("weights", message)
    bad = (~(torch.isfinite(row) & (row >= 0))).nonzero()
    if len(bad):
        place = int(bad[0])
        message = f"must be finite and >= 0; that of sample {place} is {row[place].item():g}"
        raise ConfigError.of("weights", message)
    if not bool(torch.isfinite(row.sum()) and row.sum() > 0):
        raise ConfigError.of("weights", "must have a finite sum > 0")
    return row


OrderName = Literal["reshuffle", "shuffle_once", "sequential", "replacement"]
Order = (
    OrderName
    | Sequence[int]
    | Tensor
    | Draws
    | Weighted
    | np.ndarray[Any, Any]
    | Callable[[int], Any]
    | Iterable[int]
)
# What :func:`check_order` makes of it.
CheckedOrder = OrderName | Tensor | Draws | Weighted | RowGroups | AskedOrder

# Up to so many samples an order is a tensor, drawn at once; beyond, it is computed as it is read.
MAX_KEPT = 1 << 20

# Which functions of (n, seed, epoch) the orders are; saved with a run, which goes on with its own.
# 1, of gdtrain 0.1.0, took seeds modulo 2^64, and its permutations of just under 2^31, 2^32 and
# 2^63 samples used one bit too few of a hash. Else both are the same.
ORDER_VERSION = 2

_MASK = (1 << 64) - 1
_of_thread = local()


def mix(seed: int, *keys: int) -> int:
    """Hash a seed and any number of integer keys into 64 well-mixed bits.

    Each key is absorbed by one round of SplitMix64 (Steele, Lea and Flood, 2014), so that
    neighbouring seeds and epochs give unrelated generators. Of a seed from 2^64 on, what is above
    its lowest 64 bits is absorbed before the keys.
    """
    state, above = int(seed) & _MASK, int(seed) >> 64
    high = []
    while above not in (0, -1):  # -1 are the bits above a negative number
        high.append(above & _MASK)
        above >>= 64
    for key in (*high, *keys):
        state = (state + (int(key) & _MASK) * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


def generator(seed: int, *keys: int) -> torch.Generator:
    """A CPU generator that depends on (seed, keys) alone, never on global RNG state."""
    return torch.Generator().manual_seed(mix(seed, *keys))


def check_order(
    order: Order,
    num_samples: int,
    seed: int = 0,
    samples: Samples | None = None,
) -> CheckedOrder:
    """Return ``order`` in its canonical form: a name, indices as int64 (or Draws), or a rule.

    seed: the loader's, for registered orders. samples: for orders that go by the targets, or by the
    groups that are read as one.
    Raises ConfigError for an unknown name, indices that are not in 0 … num_samples - 1, weights
    of another number of samples, or a sampler of batches.
    """
    if isinstance(order, str) and order in get_args(OrderName):  # pure ones of the package
        return order
    if isinstance(order, str | NamedSettings):
        order = _by_name(order, num_samples, seed, samples)
    if isinstance(order, str | RowGroups):
        return order
    if isinstance(order, Weighted):
        return order.checked(num_samples)
    if gives_indices(order):
        return AskedOrder(order, num_samples)
    if isinstance(order, Iterator):
        message = f"a {type(order).__name__} can be read once; give a list, or epoch -> indices"
        raise ConfigError.of("order", message)
    return check_indices(order, num_samples)


def epoch_indices(
    order: CheckedOrder, num_samples: int, seed: int, epoch: int, version: int = ORDER_VERSION
) -> Tensor | Draws | None:
    """The sample indices of one epoch, in order.

    order: what :func:`check_order` returned. version: see ``ORDER_VERSION``.
    Returns int64 indices [number of draws], or None for 0 … num_samples - 1 in sequence, which
    lets a reader slice instead of gather. What is random is a tensor up to ``MAX_KEPT`` samples
    (2^20), and :class:`~gdtrain.data.orders.permutation.Draws` beyond, which keep no index in
    memory.

    * a name is that of a registered order, of which the package has those below;
    * :class:`~gdtrain.data.orders.order.Weighted`: draws by weights;
    * a sequence is taken as it is; a callable or a sampler is asked for its indices of this epoch.
    """
    if version == 1:
        seed &= _MASK
    if isinstance(order, AskedOrder):
        return order.take(epoch)
    if isinstance(order, Weighted):
        return order.draw(generator(seed, epoch))
    if isinstance(order, RowGroups):
        return order.draw(partial(mix, seed, epoch), version)
    if isinstance(order, Tensor | Draws):
        return order
    named: Any = registry.find("order", order).part
    indices: Tensor | Draws | None = named(num_samples, seed, epoch, version)
    return indices


def _by_name(
    order: str | NamedSettings, num_samples: int, seed: int, samples: Samples | None
) -> Any:
    """A registered order: one of the package's pure ones by its name, others as a callable."""
    name = order if isinstance(order, str) else order.name
    if name not in registry.names("order"):
        names = ", ".join(registry.names("order"))
        raise ConfigError.of(
            "order",
            f"must be one of {names}, a sequence of indices, Weighted, a sampler or a "
            f"callable; got {name!r}",
        )
    if name in get_args(OrderName):
        return name
    if name == "class_balanced":
        return class_balanced(None if samples is None else samples.targets)
    if name == "row_groups":
        return row_groups(None if samples is None else samples.groups)
    part = registry.find("order", name)
    settings = part.settings(name=name) if isinstance(order, str) else order  # type: ignore[call-arg]
    return partial(part.make(settings), num_samples, seed)


# ── the orders that have names ──────────────────────────────────────────────────────────────


class Reshuffle(NamedSettings):
    """A uniformly random permutation, a new one each epoch."""


@register_order("reshuffle", Reshuffle)
def reshuffle(num_samples: int, seed: int, epoch: int, version: int) -> Tensor | Draws:
    if num_samples > MAX_KEPT:
        return Permutation(num_samples, mix(seed, epoch), version)
    # As of generator, but one for each thread, since it is drawn from at once.
    if not hasattr(_of_thread, "generator"):
        _of_thread.generator = torch.Generator()
    seeded: torch.Generator = _of_thread.generator.manual_seed(mix(seed, epoch))
    return torch.randperm(num_samples, generator=seeded, device="cpu")


def reshuffles(num_samples: int, seed: int, epochs: range, version: int) -> Tensor:
    """:func:`reshuffle` of several epochs, up to ``MAX_KEPT`` samples, [epochs, num_samples]."""
    orders = torch.empty((len(epochs), num_samples), dtype=torch.int64, device="cpu")
    drawing = torch.Generator()
    for order, epoch in zip(orders.unbind(), epochs, strict=True):
        drawing.manual_seed(mix(seed if version > 1 else seed & _MASK, epoch))
        torch.randperm(num_samples, generator=drawing, out=order, device="cpu")
    return orders


class ShuffleOnce(NamedSettings):
    """The permutation of epoch 0, every epoch."""


@register_order("shuffle_once", ShuffleOnce)
def shuffle_once(num_samples: int, seed: int, _epoch: int, version: int) -> Tensor | Draws:
    return reshuffle(num_samples, seed, 0, version)


class Sequential(NamedSettings):
    """The samples as they stand in the data."""


@register_order("sequential", Sequential)
def sequential(*_: int) -> None:
    return None


class Replacement(NamedSettings):
    """num_samples independent uniform draws (classical SGD; Robbins and Monro, 1951)."""


@register_order("replacement", Replacement)
def replacement(num_samples: int, seed: int, epoch: int, _version: int) -> Tensor | Draws:
    if num_samples > MAX_KEPT:
        return UniformDraws(num_samples, mix(seed, epoch))
    return torch.randint(
        num_samples, (num_samples,), generator=generator(seed, epoch), device="cpu"
    )


class ClassBalanced(NamedSettings):
    """num_samples independent draws in which all classes of the targets are equally frequent."""


@register_order("class_balanced", ClassBalanced)
def class_balanced(labels: Any) -> Weighted:
    if labels is None:
        message = "class_balanced needs class labels as targets, in memory; use Weighted(weights)"
        raise ConfigError.of("order", message)
    return Weighted.balanced(labels)


class GroupsOfRows(NamedSettings):
    """Row groups of a Parquet file, or files of a folder, at random, and at random in each."""


@register_order("row_groups", GroupsOfRows)
def row_groups(ends: Any) -> RowGroups:
    if ends is None:
        message = "row_groups needs data that is read in groups, as source: parquet is; use"
        raise ConfigError.of("order", f"{message} reshuffle")
    return RowGroups(ends)
