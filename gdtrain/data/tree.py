"""Inputs and targets as trees: tuples, lists, dicts and dataclasses of tensors, mapped and cut."""

from __future__ import annotations

import copy
import dataclasses
from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from enum import Enum
from numbers import Number
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from gdtrain.errors import DataError

# What selects samples along the first dimension: a slice, or their numbers, [k] int64.
Rows = slice | Tensor
Path = tuple[Any, ...]
_INNER = (tuple, list, dict)

# Values that are not of single samples, and go whole to every part of a batch.
_SINGLE = (str, bytes, Number, np.generic, Enum, torch.dtype, torch.device, type(None))


def map_tensors(tree: Any, function: Any) -> Any:
    """Apply ``function`` to every tensor in a tree; leave the rest.

    Tuples, lists, dicts and dataclasses keep their types.
    """
    if isinstance(tree, Tensor):
        return function(tree)
    if type(tree) is tuple:
        return tuple([map_tensors(child, function) for child in tree])
    if isinstance(tree, PackedSequence):  # torch demands its sizes on the CPU, whatever is moved
        parts = [p if p is tree.batch_sizes else map_tensors(p, function) for p in tree]
        return rebuilt(tree, parts)
    if is_inner(tree):
        return rebuilt(tree, [map_tensors(child, function) for _, child in children(tree)])
    return tree


def copied(tree: Any) -> Any:
    """The tree with a copy of every tensor and array."""
    if type(tree) is Tensor:
        return tree.clone()
    if isinstance(tree, np.ndarray):
        return tree.copy()
    if is_inner(tree) and not isinstance(tree, PackedSequence):
        return rebuilt(tree, [copied(child) for _, child in children(tree)])
    return map_tensors(tree, torch.clone)


def tensors_of(tree: Any) -> list[Tensor]:
    """Every tensor in a tree, in order."""
    if isinstance(tree, Tensor):
        return [tree]
    if not is_inner(tree):
        return []
    return [tensor for _, child in children(tree) for tensor in tensors_of(child)]


class Cutter:
    """Takes some of a batch's samples out of a tree.

    A tensor or array whose first dimension is the batch's goes with the samples, and so does a
    list or tuple of as many things that are no tensors, such as names. Single numbers, tensors of
    shape [], text and None go whole to every part. A list or tuple of tensors is a structure, as
    ``default_collate`` makes them, unless ``lists`` says that it may be a row of samples too, as
    other functions make of what can't be stacked; then it is what fits, and where both do, what
    it was in the batches before.

    Raises DataError for what may be either, or for anything else.
    """

    def __init__(self, *, lists: bool = False) -> None:
        self._lists = lists
        self._are_rows: dict[Path, bool] = {}

    def cut(self, tree: Any, length: int, rows: Rows, path: Path = ()) -> Any:
        """The samples ``rows`` of a tree of ``length`` samples."""
        if isinstance(tree, Tensor | np.ndarray):
            return self._cut_tensor(tree, length, rows, path)
        if isinstance(tree, _SINGLE):
            return tree
        if isinstance(tree, PackedSequence) or not is_inner(tree):
            raise DataError(f"{_name(tree, path)}: is not cut into samples; {_REMEDY}")
        if self._is_row(tree, length, path):
            return _taken(tree, rows)
        cut = [self.cut(child, length, rows, (*path, key)) for key, child in children(tree)]
        return rebuilt(tree, cut)

    def fits(self, tree: Any, length: int) -> bool:
        """Whether a tree can be one of ``length`` samples; what is of no samples always can."""
        if isinstance(tree, Tensor | np.ndarray):
            return tree.ndim == 0 or tree.shape[0] == length
        if not is_inner(tree) or isinstance(tree, PackedSequence):
            return True
        if _is_flat(tree):
            return len(tree) == length
        if self._lists and _is_list(tree) and len(tree) == length:
            return True
        return all(self.fits(child, length) for _, child in children(tree))

    def lengths(self, tree: Any) -> set[int]:
        """The numbers of samples that tensors and lists in the tree may be of."""
        if isinstance(tree, Tensor | np.ndarray):
            return {tree.shape[0]} if tree.ndim else set()
        if not is_inner(tree) or isinstance(tree, PackedSequence):
            return set()
        may_be_row = _is_flat(tree) or (self._lists and _is_list(tree))
        found = {len(tree)} if may_be_row else set()
        return found.union(*(self.lengths(child) for _, child in children(tree)))

    def _is_row(self, tree: Any, length: int, path: Path) -> bool:
        """Whether a tuple or list holds one item for each sample, and not parts of all of them."""
        is_as_long = _is_list(tree) and len(tree) == length
        if _is_flat(tree):
            if not is_as_long:
                raise DataError(
                    f"{_name(tree, path)}: has {len(tree)} items for {length} samples, and can't "
                    f"be cut into samples; {_REMEDY}"
                )
            return True
        if not (self._lists and _is_list(tree)):
            return False
        if is_as_long and all(self.fits(child, length) for _, child in children(tree)):
            if path not in self._are_rows:
                raise DataError(
                    f"{_name(tree, path)}: has {length} items in a batch of {length} samples, each "
                    f"with {length} rows, and may be a row of samples or of tensors of all of "
                    "them; choose another batch size, or give a dict or a namedtuple"
                )
            return self._are_rows[path]
        self._are_rows[path] = is_as_long
        return is_as_long

    @staticmethod
    def _cut_tensor(tensor: Any, length: int, rows: Rows, path: Path) -> Any:
        if tensor.ndim == 0:
            return tensor
        if tensor.shape[0] != length:
            raise DataError(
                f"{_name(tensor, path)}: has shape {list(tensor.shape)} in a batch of {length} "
                f"samples, and can't be cut into samples; {_REMEDY}"
            )
        if isinstance(tensor, Tensor) and tensor.layout != torch.strided:
            if isinstance(rows, slice):
                rows = torch.arange(*rows.indices(length), device=tensor.device)
            return tensor.index_select(0, rows)
        if isinstance(rows, Tensor):
            return tensor[rows.to(tensor.device) if isinstance(tensor, Tensor) else rows.numpy()]
        return tensor[rows]


_REMEDY = "give tensors [B, …], lists of B items, dicts or dataclasses of these, and single numbers"


def is_inner(tree: Any) -> bool:
    """Whether it is a tuple, list, dict or dataclass, and so holds others."""
    kind = type(tree)
    if kind is Tensor or kind in _INNER:  # as mostly: to ask for a Mapping takes long
        return kind is not Tensor
    if isinstance(tree, tuple | list | Mapping):
        return True
    return dataclasses.is_dataclass(tree) and not isinstance(tree, type)


def _is_list(tree: Any) -> bool:
    return isinstance(tree, tuple | list) and not hasattr(tree, "_fields")


def _is_flat(tree: Any) -> bool:
    """Whether it is a list, not empty, of nothing that is cut itself."""
    if not _is_list(tree) or not tree:
        return False
    return not any(isinstance(item, Tensor | np.ndarray) or is_inner(item) for item in tree)


def children(tree: Any) -> list[tuple[Any, Any]]:
    """What it holds, each by its key, place or name."""
    if type(tree) is dict or isinstance(tree, Mapping):
        return list(tree.items())
    if isinstance(tree, tuple | list):
        return list(enumerate(tree))
    return [(field.name, getattr(tree, field.name)) for field in dataclasses.fields(tree)]


def rebuilt(tree: Any, values: list[Any]) -> Any:
    """A tree of the same type with other children."""
    if type(tree) in _INNER:
        return dict(zip(tree, values, strict=True)) if type(tree) is dict else type(tree)(values)
    if hasattr(tree, "_fields"):
        return tree._make(values)
    if isinstance(tree, tuple | list):
        return type(tree)(values)
    keys = [key for key, _ in children(tree)]
    if type(tree) in (dict, OrderedDict, defaultdict):
        return dict(zip(keys, values, strict=True))
    try:
        same = copy.copy(tree)
        for key, child in zip(keys, values, strict=True):
            if isinstance(tree, Mapping):
                same[key] = child
            else:  # frozen ones too
                object.__setattr__(same, key, child)
    except (TypeError, AttributeError, ValueError, LookupError, RuntimeError):
        if not isinstance(tree, Mapping):
            raise
        return dict(zip(keys, values, strict=True))  # one that is read alone
    return same


def _taken(items: Any, rows: Rows) -> Any:
    if isinstance(rows, slice):
        return items[rows]
    return type(items)(items[row] for row in rows.tolist())


def _name(tree: Any, path: Path) -> str:
    """Where a leaf stands in a batch, and what it is."""
    place = "".join(f"[{key!r}]" if i else str(key) for i, key in enumerate(path))
    return f"{place or 'batch'} (a {type(tree).__name__})"
