"""What parts of a batch gave, joined to what the whole batch would have given."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

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
        names = children(first)
        if names is None:
            return self._same(parts, place)
        found = [(children(part) or {}) if type(part) is type(first) else {} for part in parts]
        if any(other.keys() != names.keys() for other in found):
            raise self._differs(place, "are not alike in all parts of a batch")
        return rebuilt(first, {n: self.of([f[n] for f in found], place + n) for n in names})

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

    def _differs(self, place: str, said: str) -> ModelError:
        return ModelError(
            f"{self.what}{place} {said}, so those of a whole batch can't be made of them"
        )


def _same(one: Any, other: Any) -> bool:
    try:
        return one is other or bool(one == other)
    except (TypeError, ValueError, RuntimeError):  # such as an array's, which has many answers
        return False


def children(tree: Any) -> dict[str, Any] | None:
    """The parts of a tuple, list, dict or dataclass by their place; None for anything else."""
    if isinstance(tree, Mapping):
        return {f"[{key!r}]": item for key, item in tree.items()}
    if isinstance(tree, tuple | list):
        return {f"[{i}]": item for i, item in enumerate(tree)}
    if is_dataclass(tree) and not isinstance(tree, type):
        return {f".{field.name}": getattr(tree, field.name) for field in fields(tree)}
    return None


def rebuilt(tree: Any, items: Mapping[str, Any]) -> Any:
    """A tree of the same kind made of other parts, given by their place."""
    values = list(items.values())
    if isinstance(tree, tuple | list):
        return type(tree)(*values) if hasattr(tree, "_fields") else type(tree)(values)
    made = copy.copy(tree)
    if isinstance(tree, Mapping):
        for key, value in zip(tree, values, strict=True):
            made[key] = value
        return made
    for field, value in zip(fields(tree), values, strict=True):
        object.__setattr__(made, field.name, value)
    return made


def mapped_leaves(tree: Any, function: Callable[[Tensor], Any]) -> Any:
    """Apply ``function`` to every tensor of a tree; leave the rest."""
    if isinstance(tree, Tensor):
        return function(tree)
    parts = children(tree)
    if parts is None:
        return tree
    return rebuilt(tree, {name: mapped_leaves(part, function) for name, part in parts.items()})


def tensors_of(tree: Any) -> list[Tensor]:
    """Every tensor of a tree, in order."""
    found: list[Tensor] = []
    mapped_leaves(tree, lambda tensor: found.append(tensor))
    return found


def compact(tensor: Tensor) -> Tensor:
    """The tensor without its graph, and without the memory of which it may be a small view."""
    kept = tensor.detach()
    if kept.layout is torch.strided and kept.untyped_storage().nbytes() > kept.nbytes:
        return kept.clone()
    return kept
