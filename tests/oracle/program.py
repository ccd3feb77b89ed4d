"""A training program as data: what is trained on what, and what happens in mid-run.

A program is printed as the shortest expression that makes it, so that a failing one can be pasted
into a test: ``check(Program(model="max_norm", events=(Event("forward", 3, "freeze"),)))``.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any


class _Short:
    """Prints the fields that are not as they are by default."""

    def __repr__(self) -> str:
        shown = []
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if value != field.default:
                shown.append(f"{field.name}={value!r}")
        return f"{type(self).__name__}({', '.join(shown)})"


@dataclass(frozen=True)
class Event:
    """Something that the user's own code does once.

    when, number: a moment, see :data:`MOMENTS`. what: the change, or what else is done, see
    ``changes.py``. value: its strength, or whom it concerns.
    """

    when: str
    number: int
    what: str
    value: Any = None

    def __repr__(self) -> str:
        value = "" if self.value is None else f", {self.value!r}"
        return f"Event({self.when!r}, {self.number}, {self.what!r}{value})"


# Moments, and what their number counts: calls of fit, epochs and updates from 0. The moment
# safe_point follows the update of its number, and comes with every_n_steps.
MOMENTS = (
    "fit",  # before a call of fit, outside
    "fit_start",
    "order",  # a callable order is asked
    "epoch_start",
    "forward",  # in the model
    "loss",  # in the loss
    "item",  # in the data set
    "gradient",
    "before_update",
    "safe_point",
    "epoch_end",
)
# Kinds of data that are read item by item.
DATASETS = {"dataset", "dicts", "gaps", "stream"}


@dataclass(frozen=True, repr=False)
class Program(_Short):
    """What to train and how; names are those of ``zoo.py`` and ``parts.py``.

    trainer: whose ``compute_loss`` or ``train_step``. groups: of the optimizer. late: the model
    has a layer that is frozen, and that the optimizer does not hold, until an event adds it.
    form: batch, sample, minibatch, growing or phased. data: what the loader is given. watch: the
    cadence of a callback that looks at the weights; 0: wherever blocks end; None: there is none.
    validation: (rows, every_n_epochs). memory_limit: bytes, by which microbatches are sized.
    fits: the totals of the calls of fit.
    """

    seed: int = 0
    dtype: str = "float32"
    default_dtype: str = "float32"
    model: str = "perceptron"
    late: bool = False
    loss: str = "mse"
    trainer: str = "plain"
    optimizer: str = "sgd"
    groups: str = "one"
    samples: int = 8
    data: str = "tensors"
    form: str = "minibatch"
    batch_size: int = 4
    drop_last: bool = False
    order: str = "sequential"
    schedule: str | None = None
    schedule_per: str = "epoch"
    validation: tuple[int, int] | None = None
    metric: bool = False
    watch: int | None = None
    clip_norm: float | None = None
    clip_value: float | None = None
    microbatch: int | str | None = None
    memory_limit: int | None = None
    in_float64: bool = False
    engine: str = "eager"
    ranks: int = 1
    fits: tuple[int, ...] = (1,)
    events: tuple[Event, ...] = ()

    @property
    def is_cut(self) -> bool:
        """Whether batches are cut, by microbatches or over ranks."""
        return self.microbatch is not None or self.ranks > 1

    @property
    def size_of_parts(self) -> int | None:
        """Samples of a part of a batch, where that is known and one process has all parts."""
        return self.microbatch if self.ranks == 1 and isinstance(self.microbatch, int) else None

    @property
    def is_exact(self) -> bool:
        """Whether the weights must be those of the plain loop bit for bit."""
        return not self.is_cut and self.engine in ("eager", "auto")
