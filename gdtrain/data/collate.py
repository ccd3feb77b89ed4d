"""From a Dataset's items to the inputs and targets of a batch, whatever is made of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from gdtrain.data.batch import Batch
from gdtrain.data.tree import Cutter, Rows, children, copied, is_inner, rebuilt
from gdtrain.errors import DataError
from gdtrain.wording import counted

CollateFn = Callable[[list[Any]], Any]


def collate(samples: list[Any]) -> Any:
    """torch's default. Raises DataError for samples of which it makes no batch."""
    try:
        return default_collate(samples)
    except (TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"the dataset's samples do not make a batch: {reason}; "
            "give samples of one shape, or a collate_fn"
        ) from error


def stack(samples: list[Any]) -> Any:
    """Samples of tensors in tuples and dicts as one tree of batches, which keeps their types."""
    first = samples[0]
    if not is_inner(first):
        return collate(samples)
    keys = [key for key, _ in children(first)]
    others = [[key for key, _ in children(s)] if is_inner(s) else None for s in samples]
    if other := [keys_there for keys_there in others if keys_there != keys]:
        text = f"one is made of {keys}, another of {other[0]}; give all of them one structure"
        raise DataError(f"the samples do not make a batch: {text}")
    columns = zip(*([child for _, child in children(s)] for s in samples), strict=True)
    return rebuilt(first, [stack(list(column)) for column in columns])


# Of the package, which make batches of as many samples as they are given.
OWN = (collate, stack)


def as_batch(item: Any) -> tuple[Any, Any]:
    """Inputs and targets of a collated item; targets are None for what is not a tuple or list."""
    if isinstance(item, tuple | list) and len(item) > 1:
        return item[0] if len(item) == 2 else tuple(item[:-1]), item[-1]
    return (item[0] if isinstance(item, tuple | list) else item), None


class Collated:
    """Makes batches of what one collate function gives, and knows how they are to be cut."""

    def __init__(self, collate_fn: CollateFn) -> None:
        self.cutter = Cutter(lists=collate_fn not in OWN)

    def batch(self, item: Any, places: Tensor) -> Batch:
        """The batch of a collated item. places: [k] int64, of the samples that were asked for.

        Raises DataError for one without samples.
        """
        inputs, targets = as_batch(item)
        asked = places.shape[0]
        if asked and all(
            isinstance(t, Tensor) and t.shape[:1] == (asked,) for t in (inputs, targets)
        ):
            return Batch(inputs, targets, places)
        count = self._count(inputs, targets, asked)
        if asked and not count:
            message = ", ".join(map(str, places[:9].tolist())) + (", …" if asked > 9 else "")
            raise DataError(
                f"the collate function gives no sample for {counted(asked, 'sample')} ({message}), "
                "and an update needs one; leave out what can't be used before, in the data set or "
                "its order"
            )
        known = places if count == asked else None
        return CollatedBatch(inputs, targets, known, count, self.cutter)

    def _count(self, inputs: Any, targets: Any, asked: int) -> int:
        """Samples that are there: as many as were asked for, unless only another number fits."""
        pair = {"inputs": inputs, "targets": targets}
        if self.cutter.fits(pair, asked):
            return asked
        fitting = [n for n in self.cutter.lengths(pair) if self.cutter.fits(pair, n)]
        return fitting[0] if len(fitting) == 1 else asked


class CollatedBatch(Batch):
    """A batch as a collate function has made it, perhaps of another number of samples.

    places: [B] int64, or None where the collate function has left open which they are. count: B.
    """

    __slots__ = ("_count", "_cutter", "_places")

    def __init__(
        self, inputs: Any, targets: Any, places: Tensor | None, count: int, cutter: Cutter
    ) -> None:
        self.inputs, self.targets = inputs, targets
        self._places, self._count, self._cutter = places, count, cutter

    def __len__(self) -> int:
        return self._count

    @property
    def indices(self) -> Tensor:  # type: ignore[override]
        """[B] int64. Raises DataError where the collate function has dropped or added samples."""
        if self._places is None:
            raise DataError(
                "indices: the collate function gives another number of samples than it is given, "
                "so their places in the data set are not known"
            )
        return self._places

    def take(self, rows: Rows) -> Batch:
        inputs, targets = self._taken(rows)
        places = None if self._places is None else self._places[rows]
        count = len(torch.arange(self._count, device="cpu")[rows])
        return CollatedBatch(inputs, targets, places, count, self._cutter)

    def copy(self) -> Batch:
        return self.with_trees(copied(self.inputs), copied(self.targets))

    def with_trees(self, inputs: Any, targets: Any) -> Batch:
        return CollatedBatch(inputs, targets, self._places, self._count, self._cutter)

    def describe(self, row: int) -> str:
        return f"row {row} of the batch" if self._places is None else super().describe(row)
