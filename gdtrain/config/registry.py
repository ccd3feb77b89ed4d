"""What a configuration can name besides the built-in parts: a user's own, registered in Python."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, TypeAdapter, create_model
from pydantic.errors import PydanticUserError
from pydantic.types import Strict as Strictness

from gdtrain.errors import ConfigError

T = TypeVar("T", bound=Callable[..., Any])

# Arguments that gdtrain supplies to a registered model from the data, unless the config does.
SUPPLIED = ("in_features", "input_shape", "out_features")


class Strict(BaseModel):
    """A section of the configuration: strict types, known keys only, immutable."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )


@dataclass
class Registry:
    """Registered parts of one kind, by name.

    supplied: arguments that gdtrain gives, unless the configuration does.
    called_with: how many leading arguments of a function are not options but given at each call.
    """

    kind: str
    tag: str
    supplied: tuple[str, ...] = ()
    called_with: int = 0
    parts: dict[str, Callable[..., Any]] = field(default_factory=dict)

    def add(self, name: str) -> Callable[[T], T]:
        """A decorator that registers a class or function under ``name``, and gives it back.

        A model is called with its options, and returns an ``nn.Module``; of the arguments
        ``in_features``, ``input_shape`` and ``out_features`` it is given those that it has. A loss
        is a function of (output, targets) and its options that returns shape [], or a class whose
        objects are called with (output, targets). A source is called with its options, and returns
        inputs [n, …] and targets [n, …], or a ``Dataset``. A trainer is a subclass of Trainer.
        Options are the arguments that a configuration may set, checked by their annotations.

        Raises ConfigError for a name that is no identifier, or is another part's already.
        """

        def register(part: T) -> T:
            if not isinstance(name, str) or not name.isidentifier():
                raise ConfigError.of(self.kind, f"{name!r} is not a name; use letters, digits, _")
            if self.parts.get(name, part) is not part:
                raise ConfigError.of(self.kind, f"{name!r} is already registered; choose another")
            self.parts[name] = part
            return part

        return register

    def option_models(self, base: type[Strict]) -> list[type[Strict]]:
        """A pydantic model for each part, its fields taken from the part's signature."""
        return [self._options(name, part, base) for name, part in self.parts.items()]

    def _options(self, name: str, part: Callable[..., Any], base: type[Strict]) -> type[Strict]:
        fields: dict[str, Any] = {self.tag: (Literal[name], ...)}
        hints = _type_hints(part)
        parameters = list(inspect.signature(part).parameters.values())
        for parameter in parameters if isinstance(part, type) else parameters[self.called_with :]:
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue
            if parameter.name in fields or parameter.name in base.model_fields:
                said = f"{name!r} has an argument {parameter.name!r}, which is a setting of every "
                raise ConfigError.of(self.kind, f"{said}{self.kind}; give it another name")
            default = ... if parameter.default is parameter.empty else parameter.default
            if parameter.name in self.supplied:
                default = None
            if default is ... or _is_data(default):
                fields[parameter.name] = (_checkable(hints.get(parameter.name, Any)), default)
        doc = inspect.getdoc(part)
        return create_model(f"{name}_{self.kind}", __base__=base, __doc__=doc, **fields)


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
    return Annotated[hint, Strictness(False)] if origin in (tuple, set, Path) else hint


models = Registry("model", "name", SUPPLIED)
losses = Registry("loss", "name", called_with=2)  # a function of (output, targets)
sources = Registry("source", "source")
trainers = Registry("trainer", "name")

register_model = models.add
register_loss = losses.add
register_source = sources.add
register_trainer = trainers.add
