"""The configurations of a comparison: one for each form, alike in all but the form."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gdtrain import registry
from gdtrain.config.grid import loader_settings
from gdtrain.config.load import load_config
from gdtrain.config.schema import Config
from gdtrain.config.yaml_source import Document, KeyPath
from gdtrain.errors import ConfigError, Fault
from gdtrain.registry import not_among, shown
from gdtrain.settings import Settings

# What decides the problem, the start and the arithmetic; the rest is how it is gone about.
COMMON = ("seed", "device", "data", "model", "loss", "precision", "strategy", "trainer")


@dataclass(frozen=True)
class FormConfig:
    """A form's name in the comparison, its configuration, and where its settings stand."""

    name: str
    config: Config
    document: Document


def load_forms(
    paths: Sequence[str], overrides: Sequence[str], loaders: Sequence[str]
) -> list[FormConfig]:
    """Read what is to be compared: one file under several loaders, or several files.

    loaders: of one file, names such as ``batch`` or ``minibatch:32``; none for several files.
    Raises ConfigError with the place of every fault, and of what differs though it must not.
    """
    if loaders:
        _check_loaders(loaders)
        forms = [_under(paths[0], overrides, loader) for loader in loaders]
    else:
        loaded = [load_config(path, overrides) for path in paths]
        names = _names(paths)
        forms = [FormConfig(name, *both) for name, both in zip(names, loaded, strict=True)]
    faults = [fault for form in forms[1:] for fault in _differences(forms[0], form)]
    if forms[0].config.data.source == "stream":
        message = "a stream can't be evaluated as a whole; compare on a data set"
        faults.append(forms[0].document.fault(("data",), message))
    for form in forms:
        faults += single_optimizer_faults(form.config, form.document)
    if faults:
        raise ConfigError(faults)
    return forms


def single_optimizer_faults(config: Config, document: Document) -> list[Fault]:
    """What is wrong with a configuration for a look that changes the learning rate of a run."""
    if config.phases is not None:
        text = "have a learning rate each, and one is looked for; name one optimizer instead"
        return [document.fault(("phases",), text)]
    if isinstance(config.optimizer, dict):
        text = "has several, with a learning rate each, and one is looked for; name one"
        return [document.fault(("optimizer",), text)]
    return []


def _under(path: str, overrides: Sequence[str], loader: str) -> FormConfig:
    """The configuration with another loader."""
    config, document = load_config(path, overrides)
    if settings := loader_settings(loader, getattr(config.loader, "name", None)):
        config, document = load_config(path, [*overrides, *settings])
    return FormConfig(loader, config, document)


def _check_loaders(loaders: Sequence[str]) -> None:
    known = registry.names("loader")
    faults = []
    for loader in loaders:
        name, colon, size = loader.partition(":")
        if name not in known:
            faults.append(not_among(name, known))
        elif colon and name != "minibatch":
            faults.append(f"{name} has no batch size; write {name} alone")
        elif colon and not (size.isascii() and size.isdigit() and 0 < int(size) < 2**31):
            faults.append(f"minibatch:B needs a whole number B >= 1, got {size!r}")
        elif loaders.count(loader) > 1:
            faults.append(f"names {loader} twice; name each form once")
    if faults:
        unique = dict.fromkeys(faults)
        raise ConfigError([Fault("--loaders", message, "command line") for message in unique])


def _names(paths: Sequence[str]) -> list[str]:
    """The files' names without suffix, or the whole paths where those are not all different."""
    stems = [Path(path).stem for path in paths]
    if len(set(stems)) == len(stems):
        return stems
    if len(set(paths)) < len(paths):
        message = "names the same file twice; --loaders compares the forms of one configuration"
        raise ConfigError([Fault("CONFIG", message, "command line")])
    return list(paths)


def _differences(first: FormConfig, other: FormConfig) -> Iterator[Fault]:
    """What makes two configurations two problems, each with its place in the other one."""
    for key in COMMON:
        pairs = getattr(first.config, key), getattr(other.config, key)
        for path, expected, found in _pairs((key,), *pairs):
            message = f"must be {shown(expected)} as in {first.document.path}, got {shown(found)}"
            yield other.document.fault(path, f"{message}; compare on one problem")


def _are_alike(first: Settings, other: Settings) -> bool:
    """Whether both are the settings of one part; those registered have a type for each reading."""
    kinds = [type(one).model_fields for one in (first, other)]
    tags = [[getattr(one, tag, None) for tag in ("source", "name")] for one in (first, other)]
    return kinds[0].keys() == kinds[1].keys() and tags[0] == tags[1]


def _pairs(path: KeyPath, first: Any, other: Any) -> Iterator[tuple[KeyPath, Any, Any]]:
    if isinstance(first, Settings) and isinstance(other, Settings) and _are_alike(first, other):
        for key, value in first:
            yield from _pairs((*path, key), value, getattr(other, key))
    elif isinstance(first, Settings) or isinstance(other, Settings):
        tag = "source" if path == ("data",) else "name"
        yield (*path, tag), getattr(first, tag, first), getattr(other, tag, other)
    elif first != other:
        yield path, first, other
