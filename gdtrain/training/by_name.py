"""Losses, metrics and optimizers by the names that a configuration has for them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError
from torch import nn
from torch.optim import Optimizer

from gdtrain import registry
from gdtrain.errors import ConfigError
from gdtrain.registry import no_part
from gdtrain.settings import Settings


def loss(name: str) -> Any:
    """The loss of this name, with its defaults."""
    part, settings = _part("loss", "loss", name)
    return part.make({key: value for key, value in settings if key != "name"})


def metrics(given: Any, of_loss: Any) -> Any:
    """A mapping in which names stand for the metrics of these names, if ``given`` has any.

    of_loss: the trainer's loss, which decides what an accuracy is. given: a name, a list of names,
    or a mapping whose values may be names.
    """
    if isinstance(given, str):
        given = [given]
    if isinstance(given, list | tuple) and all(isinstance(name, str) for name in given):
        given = {name: name for name in given}
    if not isinstance(given, dict):
        return given
    return {n: _metric(m, of_loss) if isinstance(m, str) else m for n, m in given.items()}


def optimizer(name: str, model: nn.Module) -> Optimizer:
    """The optimizer of this name over what the model trains."""
    part, settings = _part("optimizer", "optimizer", name)
    made: Optimizer = part.make(settings, [p for p in model.parameters() if p.requires_grad])
    return made


def _metric(name: str, of_loss: Any) -> Any:
    part, settings = _part("metric", "metrics", name)
    return part.make(settings, loss=_settings_of(of_loss))


def _settings_of(given: Any) -> Settings | None:
    """The settings, with their defaults, under which a configuration has a loss of this type."""
    for name in registry.names("loss"):
        part = registry.find("loss", name)
        if part.part in (given, type(given)):
            return part.settings.model_construct(name=name)
    return None


def _part(kind: str, key: str, name: str) -> tuple[registry.Part, Settings]:
    """The part of this name and its settings. Raises ConfigError if it needs some, or is none."""
    if name not in registry.names(kind):
        raise ConfigError.of(key, no_part(name, registry.names(kind)))
    part = registry.find(kind, name)
    tag = part.kind.tag
    try:
        return part, part.settings.model_validate({tag: name} if tag else {})
    except ValidationError as error:
        way_out = "give the object, with its options"
        if (kind, _missing(error)) == ("optimizer", "lr"):
            made = f"torch.optim.{part.part.__name__}"
            way_out = f"pass optimizer={made}(model.parameters(), lr=…)"
        raise ConfigError.of(key, f"{name} needs {_missing(error)}; {way_out}") from error


def _missing(error: ValidationError) -> str:
    named: Iterable[str] = (".".join(map(str, fault["loc"])) for fault in error.errors())
    return ", ".join(named)
