"""What the settings of every part are made of: the base classes, bounds and shorthands of YAML.

Imports no torch, so that settings can be checked without it.
"""

from __future__ import annotations

import ast
import inspect
import linecache
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from textwrap import dedent
from typing import Annotated, Any, ClassVar, Literal
from weakref import WeakKeyDictionary

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo

# What float32 holds, in which most is computed: torch raises an error for more, and takes less
# for 0.
LARGEST, SMALLEST = 1e38, 1e-38


# ── bounds ──────────────────────────────────────────────────────────────────────────────────


def _not_too_small(value: float) -> float:
    if value < SMALLEST:
        raise ValueError(f"must be >= {SMALLEST:g}, got {value:g}")
    return value


Positive = Annotated[int, Field(ge=1, lt=2**31)]
Number = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
PositiveFloat = Annotated[float, Field(gt=0, le=LARGEST), AfterValidator(_not_too_small)]
NonNegative = Annotated[float, Field(ge=0, le=LARGEST)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Weights = Annotated[list[NonNegative], Field(min_length=1)]


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("must not contain a NUL character; give a path")
    return text


FilePath = Annotated[str, Field(min_length=1), AfterValidator(_without_nul)]


def instead_of(other: str) -> Any:
    """Refuse a setting beside ``other``, which is declared before it."""

    def check(value: Any, info: ValidationInfo) -> Any:
        if value is not None and info.data.get(other) is not None:
            raise ValueError(f"can't be set together with {other}; remove one of the two")
        return value

    return AfterValidator(check)


# File and line of each class. The strings in it are read when they are asked for, as few runs do:
# pydantic, told to use them, reads those of every class, in a third of a run's start-up.
_places: WeakKeyDictionary[type, tuple[str, int]] = WeakKeyDictionary()


# ── base classes ────────────────────────────────────────────────────────────────────────────


class Settings(BaseModel):
    """Settings that a configuration checks: strict types, known keys only, immutable.

    The docstring of a class, and the string below a setting, are their descriptions.

    >>> from gdtrain import Settings
    >>> class Scaled(Settings):
    ...     '''A loss that is multiplied.'''
    ...
    ...     factor: float = 2.0
    ...     '''By what.'''
    >>> Scaled(factor=3.0)
    Scaled(factor=3.0)
    """

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        frame = sys._getframe(1)
        while frame is not None and frame.f_globals.get("__name__") != cls.__module__:
            frame = frame.f_back  # type: ignore[assignment]
        if frame is not None:
            _places[cls] = frame.f_code.co_filename, frame.f_lineno

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: Any) -> dict[str, Any]:
        schema: dict[str, Any] = handler(core_schema)
        properties = handler.resolve_ref_schema(schema).get("properties", {})
        for name, text in descriptions(cls).items():
            if name in properties:
                properties[name].setdefault("description", text)
        return schema

    def refuses(self, key: str, value: Any) -> str | None:
        """Why the configuration's section ``key`` can't be ``value`` beside this part, if so.

        Asked about the sections that come after the part's own.
        """
        return None


def descriptions(settings: type[BaseModel]) -> dict[str, str]:
    """Of each setting of a class that has one: its description.

    >>> descriptions(SourceSettings)["standardize_targets"]
    'The same for targets that are numbers; losses are then in standard deviations.'
    """
    found: dict[str, str] = {}
    for kind in reversed(settings.__mro__):
        found |= _strings_below(kind)
    fields = settings.model_fields.items()
    return found | {name: f.description for name, f in fields if f.description is not None}


def _strings_below(kind: type) -> dict[str, str]:
    """The strings below the settings that a class declares itself."""
    file, line = _places.get(kind, ("", 0))
    lines = linecache.getlines(file)[line - 1 :]
    try:
        (declared,) = ast.parse(dedent("".join(inspect.getblock(lines)))).body
    except (SyntaxError, ValueError):  # there is no text, or it is another statement's
        return {}
    if not isinstance(declared, ast.ClassDef) or declared.name != kind.__name__:
        return {}
    found = {}
    for setting, below in pairwise(declared.body):
        match setting, below:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                found[name] = inspect.cleandoc(text)
    return found


class NamedSettings(Settings):
    """What the parts of sections such as ``model`` take."""

    name: str


class SourceSettings(Settings):
    """What every data source takes."""

    validation_fraction: Fraction = 0.0
    """Share of the samples that is held out for validation, drawn by the seed."""
    standardize: bool = False
    """Subtract the mean of each input column and divide by its standard deviation, both computed on
    the training part; a constant column is only centred."""
    standardize_targets: bool = False
    """The same for numeric targets; losses are then in standard deviations."""
    shape: list[Positive] | None = None
    """Reshape each sample's inputs, for example to [1, 8, 8] for the images that a cnn takes."""
    source: str


@dataclass(frozen=True)
class Targets:
    """What a loss takes as targets.

    classes: whether they are labels of classes 0, 1, …, or else numbers.
    must_be, holds: what numbers must be, in words, and a test of a tensor or array of them, number
    by number. binary: whether 0 and 1 may stand for two named classes.
    whole: whether they are given as int64. unit: whether they have one that may be rescaled, so
    that ``standardize_targets`` and errors in it have a meaning.

    >>> from gdtrain import Targets
    >>> counts = Targets(must_be="counts 0, 1, …", holds=lambda y: y >= 0, whole=True)
    >>> counts.classes
    False
    """

    classes: bool = False
    must_be: str = ""
    holds: Callable[[Any], Any] | None = None
    binary: bool = False
    whole: bool = False
    unit: bool = False


class LossSettings(NamedSettings):
    """What every loss says of itself."""

    targets: ClassVar[Any] = Targets()
    """Its :class:`Targets`."""
    output_activations: ClassVar[tuple[str, ...]] = ()
    """What the outputs of a built-in model must have gone through; anything if empty."""
    metrics: ClassVar[tuple[str, ...]] = ()
    """The metrics that are evaluated beside it by default."""
    per_output: ClassVar[tuple[str, ...]] = ()
    """Its settings that hold one number for each output, which it takes as tensors."""

    def probabilities(self, outputs: Any) -> Any:
        """The probabilities that outputs [n, k] stand for, [n, k]; None if they stand for none."""
        return None


class LoaderSettings(Settings):
    """What every loader takes in a list of phases."""

    until_epoch: Positive | None = None
    """In a list of loaders, the last epoch of this one, counted from 1; omit it in the last one."""
    name: str


class OptimizerSettings(NamedSettings):
    """What every optimizer takes among several."""

    parameters: Annotated[list[str], Field(min_length=1)] | None = None
    """With several optimizers, the layers or parameters that this one steps, by their names in the
    model; one optimizer may omit this, and steps all the others."""


class ScheduleSettings(Settings):
    """What every schedule takes; t counts steps or epochs, α_0 is the optimizer's lr."""

    per: Literal["step", "epoch"] = "step"
    """What t counts: updates, or epochs."""
    warmup: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Warm up: rise linearly to α_0 over this many t; the schedule starts after that."""
    name: str


class OptionsOnly(Settings):
    """Options of a part whose name stands before them, as in ``monitors: {sharpness: {}}``."""
