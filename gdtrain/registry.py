"""Every part that a configuration can name, by kind and name, registered where it is defined.

What is part of the package is found by its index, ``parts.json``, which scripts/write_reference.py
writes; its module is imported when the part is built. Imports no torch.
"""

from __future__ import annotations

import importlib
import inspect
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib import resources
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, create_model
from pydantic.errors import PydanticUserError
from pydantic.types import Strict

from gdtrain.errors import ConfigError
from gdtrain.settings import (
    LoaderSettings,
    LossSettings,
    NamedSettings,
    OptimizerSettings,
    OptionsOnly,
    ScheduleSettings,
    Settings,
    SourceSettings,
)

T = TypeVar("T", bound=Callable[..., Any])


@dataclass(frozen=True)
class Kind:
    """What holds for all parts of a kind.

    base: the settings that each has besides its own. tag: the setting that names the part, "" of
    those whose name stands before their options. default: the name that may be left out.
    supplied: arguments that a part is given if it has them, unless the configuration sets them.
    given: how many leading arguments are no settings; called_with: the same of functions, which
    are called with them again and again, where a class is made once, and its objects are called.
    least: what classes of settings derive from, where not from the base. has_settings: whether a
    part's arguments are settings. name_is_enough: whether a name without
    options stays a name.
    """

    name: str
    base: type[Settings] = NamedSettings
    tag: str = "name"
    default: str | None = None
    supplied: tuple[str, ...] = ()
    given: int = 0
    called_with: int = 0
    has_settings: bool = True
    least: type[Settings] | None = None
    name_is_enough: bool = False

    def __call__(
        self, name: str, settings: type[Settings] | None = None, **facts: Any
    ) -> Callable[[T], T]:
        """A decorator that registers a class or function under ``name``, and gives it back.

        settings: a class of what a configuration may set; if left out, the part's arguments that
        have data as defaults, or none, checked by their annotations. facts: what the kind's base
        class of settings says of the part, such as ``targets`` of a loss.

        Raises ConfigError for a name that is no identifier, or is another part's already.
        """

        if not isinstance(name, str):
            text = f"is registered under a name: @register_{self.name}('name')"
            raise ConfigError.of(self.name, f"{getattr(name, '__name__', name)} {text}")

        def register(part: T) -> T:
            home = part.__module__ if settings is None else settings.__module__
            self._check_name(name, part, home)
            self._check_said(name, settings, facts)
            if name not in registered[self.name]:
                own = self._of_signature(name, part) if settings is None else settings
                made = self._tagged(name, own)
                for fact, value in facts.items():
                    setattr(made, fact, value)
                registered[self.name][name] = Part(self, name, part, made, home)
            return part

        return register

    def _check_name(self, name: str, part: Any, home: str) -> None:
        message = None
        there = registered[self.name].get(name)
        if not name.isidentifier():
            message = "is not a name; use letters, digits, _"
        elif home != index()[self.name].get(name, {}).get("module", home):
            message = "is built in; register yours under another name"
        elif there is not None and there.part is not part:
            message = "is already registered; choose another"
        if message is not None:
            raise ConfigError.of(self.name, f"{name!r} {message}")

    def _check_said(self, name: str, settings: Any, facts: dict[str, Any]) -> None:
        """Raise ConfigError for settings of another kind, and facts that no such part has."""
        least = self.least or self.base
        if settings is not None and not issubclass(settings, least):
            text = f"{name!r} has settings that are no {least.__name__}; derive their class from it"
            raise ConfigError.of(self.name, text)
        known = sorted(self.base.__class_vars__)
        for fact in facts:
            if fact not in known:
                among = ", ".join(known) or "none"
                text = f"{name!r} is given {fact!r}; what can be said of a {self.name}: {among}"
                raise ConfigError.of(self.name, text)

    def _tagged(self, name: str, settings: type[Settings]) -> type[Settings]:
        """The settings with a name that is this one."""
        if not self.tag:
            return settings
        tag: dict[str, Any] = {
            self.tag: (Literal[name], name if name == self.default else ...),
        }
        return create_model(
            settings.__name__,
            __base__=settings,
            __doc__=settings.__doc__,
            __module__=settings.__module__,
            **tag,
        )

    def _of_signature(self, name: str, part: Callable[..., Any]) -> type[Settings]:
        """Settings that are taken from the part's signature."""
        if not self.has_settings:
            return create_model(name, __base__=self.base, __doc__=inspect.getdoc(part))
        fields: dict[str, Any] = {}
        hints = _type_hints(part)
        skipped = self.given if isinstance(part, type) else self.given + self.called_with
        for parameter in list(inspect.signature(part).parameters.values())[skipped:]:
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue
            if parameter.name in (self.tag, *self.base.model_fields):
                text = f"{name!r} has an argument {parameter.name!r}, which is a setting of every "
                raise ConfigError.of(self.name, f"{text}{self.name}; give it another name")
            default = ... if parameter.default is parameter.empty else parameter.default
            if parameter.name in self.supplied:
                default = None
            if default is ... or _is_data(default):
                fields[parameter.name] = (_checkable(hints.get(parameter.name, Any)), default)
        doc = inspect.getdoc(part)
        return create_model(f"{name}_{self.name}", __base__=self.base, __doc__=doc, **fields)


@dataclass(frozen=True)
class Part:
    """A registered part. home: the name of the module that registered it."""

    kind: Kind
    name: str
    part: Callable[..., Any]
    settings: type[Settings]
    home: str

    @property
    def is_built_in(self) -> bool:
        return self.name in index()[self.kind.name]

    @property
    def summary(self) -> str:
        """The first line of its description."""
        return (inspect.cleandoc(self.settings.__doc__ or "").splitlines() or [""])[0]

    def takes(self, argument: str) -> bool:
        """Whether it has this argument."""
        return argument in inspect.signature(self.part).parameters

    def make(self, settings: Settings, *given: Any, **supplied: Any) -> Any:
        """The part with its settings: a function with them bound, else what calling it gives.

        given: the kind's leading arguments. supplied: taken if the part has such arguments, and
        the settings do not set them.
        """
        left_out = {self.kind.tag, *self.kind.base.model_fields}
        options = {key: value for key, value in settings if key not in left_out}
        return self.call(options, *given, **supplied)

    def call(self, options: dict[str, Any], *given: Any, **supplied: Any) -> Any:
        """As :meth:`make`, with the settings as they are to be given."""
        if self.kind.called_with and not isinstance(self.part, type):
            return partial(self.part, **options) if options else self.part
        more = {n: v for n, v in supplied.items() if options.get(n) is None and self.takes(n)}
        return self.part(*given, **options | more)


@cache
def index() -> dict[str, dict[str, Any]]:
    """What is part of the package: kind -> name -> module, description and settings (a schema)."""
    text = resources.files("gdtrain").joinpath("parts.json").read_text("utf-8")
    there = json.loads(text)
    return {kind: there.get(kind, {}) for kind in KINDS}


def names(kind: str) -> list[str]:
    """The names of all parts of a kind, the package's first."""
    return list(dict.fromkeys([*index()[kind], *registered[kind]]))


def find(kind: str, name: str) -> Part:
    """The part of this name, whose module is imported if need be. Raises KeyError."""
    if name not in registered[kind]:
        importlib.import_module(index()[kind][name]["module"])
    return registered[kind][name]


def summary(kind: str, name: str) -> str:
    """The first line of a part's description; imports nothing."""
    known: dict[str, str] | None = index()[kind].get(name)
    return find(kind, name).summary if known is None else known["description"]


def make(kind: str, settings: Any, *given: Any, **supplied: Any) -> Any:
    """The part that settings name, made with them; see :meth:`Part.make`."""
    name = getattr(settings, KINDS[kind].tag)
    return find(kind, name).make(settings, *given, **supplied)


def _type_hints(part: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of a part's arguments; none if one of them can't be resolved."""
    function = part.__init__ if isinstance(part, type) else part  # type: ignore[misc]
    try:
        return get_type_hints(function)
    except (NameError, TypeError):
        return {}


def _is_data(value: Any) -> bool:
    """Whether a YAML file can hold the value; an argument with another default is no setting."""
    if isinstance(value, list | tuple):
        return all(map(_is_data, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_data(item) for key, item in value.items())
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, bool | int | str | Path)


def _checkable(hint: Any) -> Any:
    """The annotation as it can be checked in data: a list may stand for a tuple, text for a path.

    What is not data, such as a class, counts as Any.
    """
    origin = get_origin(hint) or hint
    if origin in (Union, UnionType):
        return Union[tuple(_checkable(member) for member in get_args(hint))]  # noqa: UP007
    try:
        TypeAdapter(hint).json_schema()
    except (PydanticUserError, NameError):
        return Any
    return Annotated[hint, Strict(False)] if origin in (tuple, set, Path) else hint


_SIZES = ("in_features", "input_shape", "out_features")

register_source = Kind("source", SourceSettings, tag="source", supplied=("seed",))
register_model = Kind("model", supplied=_SIZES)
register_loss = Kind("loss", LossSettings, called_with=2)
register_loader = Kind("loader", LoaderSettings, supplied=("seed",), given=1)
register_order = Kind("order", called_with=3, name_is_enough=True)
register_optimizer = Kind(
    "optimizer", OptimizerSettings, default="sgd", given=1, least=NamedSettings
)
register_schedule = Kind("schedule", ScheduleSettings, least=Settings, supplied=("total",))
register_variance_reduction = Kind("variance_reduction")
register_metric = Kind("metric", OptionsOnly, tag="", called_with=2, supplied=("loss",))
register_monitor = Kind("monitor", OptionsOnly, tag="")
register_callback = Kind("callback", OptionsOnly, tag="")
register_trainer = Kind("trainer", OptionsOnly, tag="", has_settings=False)

KINDS = {
    kind.name: kind
    for kind in (
        *(register_source, register_model, register_loss, register_loader, register_order),
        *(register_optimizer, register_schedule, register_variance_reduction, register_metric),
        *(register_monitor, register_callback, register_trainer),
    )
}
registered: dict[str, dict[str, Part]] = {kind: {} for kind in KINDS}
"""The parts whose modules have been imported, the users' own among them, by kind and name."""
