"""Settings that name a part, and the settings of built-in parts as their index describes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, reduce
from operator import or_
from typing import Annotated, Any, Literal, Union

from pydantic import Discriminator, Field, Tag, ValidationError, ValidationInfo, create_model
from pydantic_core import InitErrorDetails, PydanticCustomError, core_schema

from gdtrain import registry
from gdtrain.near_names import nearest
from gdtrain.registry import KINDS
from gdtrain.settings import LARGEST, PositiveFloat, Settings

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
        kind, known = KINDS[self.kind], registry.names(self.kind)
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
        known = registry.names(self.kind)
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
    if by_index and name in registry.index()[kind]:
        return _of_index(kind, name)
    return registry.find(kind, name).settings


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
    schema = registry.index()[kind][name]["settings"]
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
