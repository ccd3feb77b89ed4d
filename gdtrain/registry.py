"""Every part that a configuration can name, by kind and name, registered where it is defined.

What is part of the package is found by its index, ``parts.json``, which scripts/write_reference.py
writes; its module is imported when the part is built. Settings that name a part become its own
settings here, which may be made of what the index says of them. Imports no torch.
"""

from __future__ import annotations

import importlib
import inspect
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial, reduce
from importlib import resources
from operator import or_
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import (
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    create_model,
)
from pydantic.errors import PydanticUserError
from pydantic.types import Strict
from pydantic_core import InitErrorDetails, PydanticCustomError, core_schema

from gdtrain.errors import ConfigError
from gdtrain.settings import (
    LARGEST,
    LoaderSettings,
    LossSettings,
    NamedSettings,
    OptimizerSettings,
    OptionsOnly,
    PositiveFloat,
    ScheduleSettings,
    Settings,
    SourceSettings,
)
from gdtrain.wording import nearest

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
                is_built_in = name in index()[self.name]
                registered[self.name][name] = Part(self, name, part, made, home, is_built_in)
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
    """A registered part.

    home: the name of the module that registered it. is_built_in: whether it is the package's.
    """

    kind: Kind
    name: str
    part: Callable[..., Any]
    settings: type[Settings]
    home: str
    is_built_in: bool

    @property
    def summary(self) -> str:
        """The first line of its description."""
        return (inspect.cleandoc(self.settings.__doc__ or "").splitlines() or [""])[0]

    def takes(self, argument: str) -> bool:
        """Whether it has this argument."""
        return argument in inspect.signature(self.part).parameters

    def make(self, settings: Settings | dict[str, Any], *given: Any, **supplied: Any) -> Any:
        """The part with its settings: a function with them bound, else what calling it gives.

        settings: or its options by name, as they are to be given. given: the kind's leading
        arguments. supplied: taken if the part has such arguments, and the settings do not set them.
        """
        options = settings
        if not isinstance(options, dict):
            left_out = {self.kind.tag, *self.kind.base.model_fields}
            options = {key: value for key, value in options if key not in left_out}
        if self.kind.called_with and not isinstance(self.part, type):
            return partial(self.part, **options) if options else self.part
        taken = inspect.signature(self.part).parameters if supplied else {}
        more = {n: v for n, v in supplied.items() if n in taken and options.get(n) is None}
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


BY_INDEX = "by the index"
"""The context of a validation that imports no module: what validators of parts see stays unseen."""


# ── what is said of values ──────────────────────────────────────────────────────────────────


def shown(value: Any) -> str:
    """A setting's value as a person would write it, shortened."""
    text = "nothing" if value is None else repr(value) if isinstance(value, str) else str(value)
    if isinstance(value, bool):
        text = str(value).lower()
    return text if len(text) <= 60 else text[:57] + "…"


# What parts are called elsewhere.
_OTHER_NAMES = {
    "stochastic": "sample",
    "online": "sample",
    "full": "batch",
    "full_batch": "batch",
    "mini_batch": "minibatch",
    "mae": "l1",
    "mean_absolute_error": "l1",
    "l2": "mse",
    "squared_error": "mse",
    "mean_squared_error": "mse",
    "crossentropy": "cross_entropy",
    "categorical_crossentropy": "cross_entropy",
    "softmax": "cross_entropy",
    "binary_crossentropy": "bce",
    "binary_cross_entropy": "bce",
    "logistic": "bce_with_logits",
    "hinge": "multi_margin",
    "perceptron": "mlp",
    "dense": "mlp",
    "convnet": "cnn",
    "reduce_on_plateau": "plateau",
    "moons": "two_moons",
    "acc": "accuracy",
    "cosineannealinglr": "cosine",
    "cosine_annealing": "cosine",
    "reducelronplateau": "plateau",
}


def not_among(value: Any, known: Iterable[str]) -> str:
    """What is wrong with a name that is none of the known ones, and which may be meant."""
    names = list(known)
    return f"must be one of {', '.join(names)}; got {shown(value)}{_meant(value, names)}"


def _meant(value: Any, names: list[str]) -> str:
    """Which of the names may be meant, as the end of a message; "" if none is like it."""
    word = str(value).lower().replace("-", "_")
    short = word.removesuffix("loss").removesuffix("_")  # as in PyTorch's names
    here = [n for n in (_OTHER_NAMES.get(word), _OTHER_NAMES.get(short), short) if n in names]
    near = here[0] if here else nearest(str(value), names)
    return f"; did you mean {near}?" if near else ""


def no_part(value: Any, known: Iterable[str]) -> str:
    """The same of the name of a part, which may be one that its user has not imported."""
    text = not_among(value, known)
    is_near = not isinstance(value, str) or "did you mean" in text
    return text if is_near else f"{text}; {OWN_PART}"


# What a configuration has a section for, though it is a callback in Python.
SECTIONS = ("early_stopping", "averaging", "checkpoint", "variance_reduction")
OWN_PART = "for a part of your own, give --import MODULE (in Python, import it first)"


def fault(message: str, *place: int | str) -> ValidationError:
    """An error of the setting at ``place`` below the one that is looked at."""
    of = PydanticCustomError("misplaced", "{message}", {"message": message})
    details = InitErrorDetails(type=of, loc=place, input=None)
    return ValidationError.from_exception_data("settings", [details])


# ── settings that name parts ────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class OneOf:
    """A part by its name alone, or a mapping with the name and options; becomes its settings."""

    kind: str

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.with_info_plain_validator_function(self.validate)

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        return {"part": self.kind}

    def validate(self, value: Any, info: ValidationInfo) -> Any:
        """The settings of the part. Raises ValidationError."""
        kind, known = KINDS[self.kind], names(self.kind)
        if isinstance(value, Settings):
            return value
        alone = isinstance(value, str)
        if alone:
            value = {kind.tag: value}
        if not isinstance(value, dict):
            if kind.name_is_enough:
                raise fault(no_part(value, known))
            raise fault(f"must be a name or a mapping of settings, got {shown(value)}")
        if kind.default is not None:
            value = {kind.tag: kind.default, **value}
        if kind.tag not in value:
            raise fault(f"missing; it must be one of {', '.join(known)}", kind.tag)
        if value[kind.tag] not in known:
            raise fault(no_part(value[kind.tag], known), kind.tag)
        model = settings_of(self.kind, value[kind.tag], info.context == BY_INDEX)
        checked = model.model_validate(value, context=info.context)
        return value[kind.tag] if alone and kind.name_is_enough else checked


@dataclass(frozen=True)
class SomeOf:
    """Parts by name, each with options or alone; becomes a mapping of names to settings.

    may_be_none: whether an empty list is a choice.
    """

    kind: str
    may_be_none: bool = False

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.with_info_plain_validator_function(self.validate)

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        return {"parts": self.kind}

    def validate(self, value: Any, info: ValidationInfo) -> dict[str, Settings]:
        """The settings of each part that is named. Raises ValidationError or ValueError."""
        known = names(self.kind)
        options = value if isinstance(value, dict) else self._alone(value, known)
        models: dict[str, Any] = {
            name: (settings_of(self.kind, name, info.context == BY_INDEX) | None, None)
            for name in known
            if name in options
        }
        checked = create_model(self.kind, __base__=Settings, **models).model_validate(
            options, context=info.context
        )
        named = {name: given for name, given in checked if given is not None}
        if not named and not self.may_be_none:
            raise self._none(known)
        return named

    def _alone(self, value: Any, known: list[str]) -> dict[str, Any]:
        """A name, or a list of names, as a mapping of names to no options."""
        given = value if isinstance(value, list) else [value]
        if not given and not self.may_be_none:
            raise self._none(known)
        for number, name in enumerate(given):
            if isinstance(name, dict):
                of = next((n for n in (*name.values(), *name) if n in known), "name")
                text = f"must be a name; with options, write a mapping of names: {{{of}: {{…}}}}"
                raise fault(text, *([number] if given is value else []))
            if name not in known and self.may_be_none:
                raise fault(no_part(name, known), *([number] if given is value else []))
            if name not in known:
                raise ValueError(self._unknown(name, known))
        if len(set(given)) < len(given):
            raise ValueError("must be different names; one of them occurs twice")
        return {name: {} for name in given}

    def _unknown(self, name: Any, known: list[str]) -> str:
        if self.kind == "callback" and name in SECTIONS:
            return f"{name} is no callback, but a section beside callbacks: {name}: {{…}}"
        if not known:
            return f"has no part {name!r}; {OWN_PART}"
        meant = _meant(name, known) or f"; {OWN_PART}" * isinstance(name, str)
        return f"must be among {', '.join(known)}, each with options or alone; got {name!r}{meant}"

    def _none(self, known: list[str]) -> ValueError:
        among = ", ".join(known) or f"those registered with register_{self.kind}"
        return ValueError(f"names no {self.kind}; name some of {among}, or remove it")


def settings_of(kind: str, name: str, by_index: bool = False) -> type[Settings]:
    """The class of a part's settings.

    by_index: of a built-in part one that is made of what the index says, and knows keys, types and
    bounds; else the part's own, whose module is imported.
    """
    if by_index and name in index()[kind]:
        return _of_index(kind, name)
    return find(kind, name).settings


class OneOfKinds:
    """A setting of several kinds of value: ``one``, ``several`` (a list) or a ``mapping``.

    one: the type of whatever is neither a list nor a mapping that has a type here. named: of
    mappings of names to parts, each with its settings.
    """

    def __init__(self, **kinds: Any) -> None:
        self.kinds = kinds

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        kinds = self.kinds.items()
        members: list[Any] = [Annotated[type_, Tag(_TAGS[kind])] for kind, type_ in kinds]
        union: Any = Annotated[reduce(or_, members), Discriminator(self._kind_of)]
        schema: core_schema.CoreSchema = handler.generate_schema(union)
        return schema

    def _kind_of(self, value: Any) -> str:
        kind = "one"
        if isinstance(value, list | tuple):
            kind = "several"
        elif "named" in self.kinds and are_named(value):
            kind = "named"
        elif isinstance(value, dict | Settings):
            kind = "mapping"
        return _TAGS[kind if kind in self.kinds else "one"]


def are_named(value: Any) -> bool:
    """Whether a section is of several parts by names that it gives them, and not of one."""
    if not isinstance(value, dict) or "name" in value:
        return False
    return any(isinstance(item, dict | Settings) for item in value.values())


# What messages leave out of a place; no key of YAML has a space in it.
_TAGS = {
    **{"one": "one value", "several": "a list of values", "mapping": "a mapping of settings"},
    "named": "several by name",
}

Indices = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1)]
OrderSetting = Annotated[Any, OneOfKinds(one=Annotated[Any, OneOf("order")], several=Indices)]


# ── the index ───────────────────────────────────────────────────────────────────────────────


@cache
def _of_index(kind: str, name: str) -> type[Settings]:
    schema = index()[kind][name]["settings"]
    base = KINDS[kind].base
    has_all = set(base.model_fields) <= set(schema["properties"])
    return _Reader(schema.get("$defs", {})).model(schema, base if has_all else Settings)


@dataclass(frozen=True)
class _Reader:
    """Makes pydantic models of JSON schemas, as far as those of settings go."""

    definitions: Mapping[str, Any]

    def model(self, schema: Mapping[str, Any], base: type[Settings] = Settings) -> type[Settings]:
        fields: dict[str, Any] = {}
        for key, setting in schema.get("properties", {}).items():
            if key in base.model_fields and "const" not in setting:
                continue
            described = Field(description=setting.get("description"))
            default = ... if key in schema.get("required", ()) else setting.get("default")
            # A default beside the field, and not in it: pydantic 2.10 forgets that one is required.
            fields[key] = (Annotated[self.annotation(setting), described], default)
        doc = schema.get("description")
        return create_model(schema["title"], __base__=base, __doc__=doc, **fields)

    def annotation(self, schema: Mapping[str, Any]) -> Any:
        """The type whose values a schema describes."""
        if "$ref" in schema:
            return self.model(self.definitions[schema["$ref"].rpartition("/")[2]])
        if "part" in schema:
            return Annotated[Any, OneOf(schema["part"])]
        if "const" in schema or "enum" in schema:
            return Literal[tuple(schema.get("enum", [schema.get("const")]))]
        if "anyOf" in schema:
            return Union[tuple(map(self.annotation, schema["anyOf"]))]  # noqa: UP007
        if "oneOf" in schema:
            found = {_kind_of(option): self.annotation(option) for option in schema["oneOf"]}
            return Annotated[Any, OneOfKinds(**found)]
        return self._plain(schema)

    def _plain(self, schema: Mapping[str, Any]) -> Any:
        kind: Any = {
            "boolean": bool,
            "integer": int,
            "null": None,
            "number": float,
            "object": dict[str, Any],
            "string": str,
        }.get(schema.get("type", ""), Any)
        if isinstance(schema.get("additionalProperties"), dict):
            kind = dict[str, self.annotation(schema["additionalProperties"])]  # type: ignore[misc]
        if schema.get("type") == "array":
            kind = list[self.annotation(schema.get("items", {}))]  # type: ignore[misc]
        bounds = {word: schema[key] for key, word in _BOUNDS.items() if key in schema}
        if bounds == {"gt": 0, "le": LARGEST}:
            return PositiveFloat
        return Annotated[kind, Field(**bounds)] if bounds else kind


_BOUNDS = {
    **{"minimum": "ge", "exclusiveMinimum": "gt", "maximum": "le", "exclusiveMaximum": "lt"},
    **{"minItems": "min_length", "maxItems": "max_length"},
    **{"minLength": "min_length", "maxLength": "max_length", "pattern": "pattern"},
}


def _kind_of(schema: Mapping[str, Any]) -> str:
    """The kind of value, of those of :class:`OneOfKinds`, that a schema is of."""
    if schema.get("type") == "array":
        return "several"
    return "mapping" if "$ref" in schema or schema.get("type") == "object" else "one"
