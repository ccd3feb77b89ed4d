"""From a Dataset's items to inputs and targets of a batch."""

from __future__ import annotations

from typing import Any

from torch.utils.data import default_collate

from gdtrain.errors import DataError


def collate(samples: list[Any]) -> Any:
    """torch's default; returns, not raises, a DataError, which keeps its text across processes."""
    try:
        return default_collate(samples)
    except (TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        return DataError(
            f"the dataset's samples do not make a batch: {reason}; "
            "give samples of one shape, or a collate_fn"
        )


def as_batch(item: Any) -> tuple[Any, Any]:
    """Inputs and targets of a collated item; targets are None for what is not a tuple or list.

    Raises the DataError that :func:`collate` has given.
    """
    if isinstance(item, DataError):
        raise item
    if isinstance(item, tuple | list) and len(item) > 1:
        return item[0] if len(item) == 2 else tuple(item[:-1]), item[-1]
    return (item[0] if isinstance(item, tuple | list) else item), None
