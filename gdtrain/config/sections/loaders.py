"""Which samples form which batch: the loaders, their batch sizes, and their phases."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, ValidationError, ValidationInfo, field_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from gdtrain.config.registry import Strict
from gdtrain.config.sections.bounds import Positive, shorthand
from gdtrain.data.loaders.phases import misplaced_end
from gdtrain.data.names import OrderName

Indices = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1)]
SampleOrder = OrderName | Indices
# The names of the kinds of value that a setting can be of; no key of YAML has a space in it.
ONE, SEVERAL, GROWING = "one value", "a list of phases", "a growing value"


def _kind(value: Any) -> str:
    return SEVERAL if isinstance(value, list | tuple) else ONE


def _kind_of_size(value: Any) -> str:
    return GROWING if isinstance(value, dict | GrowingBatchSize) else _kind(value)


def _fault(message: str, *place: int | str) -> ValidationError:
    """An error of the setting at ``place`` below the one that is looked at."""
    fault = PydanticCustomError("misplaced", "{said}", {"said": message})
    details = InitErrorDetails(type=fault, loc=place, input=None)
    return ValidationError.from_exception_data("phases", [details])


def _following(phases: list[Any]) -> list[Any]:
    """Phases of which each ends after the one before it; else an error with its place."""
    if said := misplaced_end([phase.until_epoch for phase in phases]):
        raise _fault(said[1], said[0], "until_epoch")
    return phases


class BatchSizePhase(Strict):
    """A batch size until the end of an epoch."""

    until_epoch: Positive | None = None
    """The last epoch with this batch size, counted from 1; left out in the last phase."""
    value: Positive
    """Samples of one update."""


class GrowingBatchSize(Strict):
    """B = min(largest, ⌊initial · factor^⌊e / every_n_epochs⌋⌋) in epoch e = 0, 1, …"""

    initial: Positive
    """Samples of one update in the first epoch."""
    factor: Annotated[float, Field(ge=1.01, le=1e6)] = 2.0
    """What the batch size is multiplied by each time."""
    every_n_epochs: Positive = 1
    """How many epochs between two times."""
    largest: Positive
    """Where it stops growing."""

    @field_validator("largest")
    @classmethod
    def _over_initial(cls, value: int, info: ValidationInfo) -> int:
        initial = info.data.get("initial", 1)
        if value <= initial:
            raise ValueError(f"must be > {initial}, the initial batch size, got {value}")
        return value


BatchSize = Annotated[
    Annotated[Positive, Tag(ONE)]
    | Annotated[list[BatchSizePhase], Field(min_length=1), Tag(SEVERAL)]
    | Annotated[GrowingBatchSize, Tag(GROWING)],
    Discriminator(_kind_of_size),
]


class LoaderForm(Strict):
    """What every loader takes in a list of phases."""

    until_epoch: Positive | None = None
    """In a list of loaders, the last epoch of this one, counted from 1; left out in the last."""


class BatchLoaderSection(LoaderForm):
    """Every sample, then one update."""

    name: Literal["batch"]
    order: SampleOrder = "sequential"
    """reshuffle, shuffle_once, sequential, replacement, or a list of sample indices."""


class SampleLoaderSection(LoaderForm):
    """One sample per update."""

    name: Literal["sample"]
    order: SampleOrder = "reshuffle"
    """reshuffle, shuffle_once, sequential, replacement, or a list of sample indices."""


class MiniBatchLoaderSection(LoaderForm):
    """batch_size samples per update."""

    name: Literal["minibatch"]
    batch_size: BatchSize
    """Samples of one update; the last batch of an epoch has what is left over. One number, or one
    for each epoch: a list of {until_epoch, value}, or {initial, factor, every_n_epochs, largest}
    (Smith et al., 2018)."""
    order: SampleOrder = "reshuffle"
    """reshuffle, shuffle_once, sequential, replacement, or a list of sample indices."""
    drop_last: bool = False
    """Leave out a last batch that is not full."""

    @field_validator("batch_size")
    @classmethod
    def _phases_follow(cls, value: Any) -> Any:
        return _following(value) if isinstance(value, list) else value


Form = Annotated[
    BatchLoaderSection | SampleLoaderSection | MiniBatchLoaderSection,
    Field(discriminator="name"),
    shorthand("name"),
]
LoaderSection = Annotated[
    Annotated[Form, Tag(ONE)] | Annotated[list[Form], Field(min_length=1), Tag(SEVERAL)],
    Discriminator(_kind),
]


def forms(loader: Any) -> list[LoaderForm]:
    """The loaders of a section, one or several."""
    return list(loader) if isinstance(loader, list) else [loader]


def check_phases(loader: Any) -> None:
    """Raise an error, at its place, if loaders do not follow each other."""
    if isinstance(loader, list):
        _following(loader)
    elif loader.until_epoch is not None:
        said = "has no effect outside a list of loaders; remove it, or add the loader after it"
        raise _fault(said, "until_epoch")
