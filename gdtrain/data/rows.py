"""What parts of a batch gave, joined to what the whole batch would have given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gdtrain.data.tree import children, is_inner, rebuilt
from gdtrain.errors import ModelError


def join(parts: Sequence[Any], sizes: Sequence[int], what: str) -> Any:
    """The trees of consecutive parts of a batch as one: tuples, dicts and dataclasses of tensors.

    parts: alike in structure. A tensor [b, …] with a row for each of the part's b samples is joined
    along the first dimension, and a list with an item for each of them end to end; anything else
    must be the same in all parts, such as a temperature, and is taken from the first.
    sizes: of the parts. what: whose they are, for messages. Raises ModelError for what differs.
    """
    return _Join(sizes, what).of(parts, "")


class _Join:
    def __init__(self, sizes: Sequence[int], what: str) -> None:
        self.sizes = sizes
        self.what = what

    def of(self, parts: Sequence[Any], place: str) -> Any:
        first = parts[0]
        if isinstance(first, Tensor):
            return self._tensors(parts, place)
        if isinstance(first, list) and self._are_items(parts):
            return [item for part in parts for item in part]
        if not is_inner(first):
            return self._same(parts, place)
        found = [dict(children(part)) if type(part) is type(first) else {} for part in parts]
        names = found[0]
        if any(other.keys() != names.keys() for other in found):
            raise self._differs(place, "are not alike in all parts of a batch")
        return rebuilt(first, [self.of([f[n] for f in found], f"{place}[{n!r}]") for n in names])

    def _tensors(self, parts: Sequence[Tensor], place: str) -> Tensor:
        if self._are_rows(parts):
            return torch.cat(list(parts))
        if all(part.shape == parts[0].shape and torch.equal(part, parts[0]) for part in parts):
            return parts[0].clone()
        shapes = ", ".join(str(list(part.shape)) for part in parts[:2])
        raise self._differs(
            place, f"have shapes {shapes}, … for parts of {self._said}, and no row for each sample"
        )

    def _are_rows(self, parts: Sequence[Any]) -> bool:
        return all(
            isinstance(part, Tensor) and part.ndim > 0 and part.shape[0] == size
            for part, size in zip(parts, self.sizes, strict=True)
        )

    def _are_items(self, parts: Sequence[list[Any]]) -> bool:
        """Whether these lists have an item for each sample, rather than a tensor of rows each."""
        if any(len(part) != size for part, size in zip(parts, self.sizes, strict=True)):
            return False
        columns = zip(*parts, strict=False)
        return not all(self._are_rows(column) for column in columns)

    def _same(self, parts: Sequence[Any], place: str) -> Any:
        if all(_same(part, parts[0]) for part in parts):
            return parts[0]
        raise self._differs(place, "differ from part to part of a batch")

    @property
    def _said(self) -> str:
        return ", ".join(map(str, self.sizes[:2])) + ", … samples"

    def _differs(self, place: str, message: str) -> ModelError:
        return ModelError(
            f"{self.what}{place} {message}, so those of a whole batch can't be made of them"
        )


def _same(one: Any, other: Any) -> bool:
    try:
        return one is other or bool(one == other)
    except (TypeError, ValueError, RuntimeError):  # such as an array's, which has many answers
        return False


def compact(tensor: Tensor) -> Tensor:
    """The tensor without its graph, and without the memory of which it may be a small view."""
    kept = tensor.detach()
    if kept.layout is torch.strided and kept.untyped_storage().nbytes() > kept.nbytes:
        return kept.clone()
    return kept
