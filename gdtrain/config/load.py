"""From a YAML file and overrides to a checked configuration, or to every fault in them at once."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import yaml
from pydantic import ValidationError

from gdtrain.config.messages import faults_of
from gdtrain.config.schema import Config
from gdtrain.config.yaml_source import Document, apply_overrides, plain_scalar, read_files
from gdtrain.errors import ConfigError, Fault
from gdtrain.registry import BY_INDEX
from gdtrain.settings import Settings


def load_config(
    path: str | Path | Sequence[str | Path],
    overrides: Sequence[str] = (),
    *,
    by_index: bool = False,
) -> tuple[Config, Document]:
    """Read, override and check a configuration; the document keeps the place of each setting.

    path: of a file, or of several, which are merged: the later ones win. ``-``: standard input.
    by_index: see :func:`check`. Raises ConfigError that lists every fault with file, line and
    column.
    """
    document = read_files([path] if isinstance(path, str | Path) else path)
    if overrides:
        apply_overrides(document, list(overrides))
    return check(document, by_index=by_index), document


def parse_config(data: Mapping[str, Any]) -> Config:
    """Check a configuration given as a dict. Raises ConfigError that lists every fault."""
    try:
        return check(Document("", dict(data)))
    except ConfigError as error:
        raise ConfigError([Fault(fault.key, fault.message) for fault in error.faults]) from None


def check(document: Document, *, by_index: bool = False) -> Config:
    """The configuration in a document. Raises ConfigError with every fault and its place.

    by_index: check keys, types and bounds alone, for which no part is imported. Without torch,
    whose import takes a while, that is done first in any case.
    """
    early = [] if "torch" in sys.modules else [BY_INDEX]
    for context in early if early and by_index else [*early, None]:
        faults = list(document.faults)
        try:
            config = Config.model_validate(document.data, context=context)
        except ValidationError as error:
            known = {fault.key for fault in faults}
            faults += [fault for fault in faults_of(document, error) if fault.key not in known]
        if faults:
            raise ConfigError(sorted(faults, key=lambda f: (f.path or "", f.line, f.column)))
    return config


def dump(config: Config) -> str:
    """The configuration as YAML, every default filled in; loading it gives the same again."""
    text: str = yaml.dump(
        _plain(config),
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=False,
    )
    return text


def _plain(value: Any) -> Any:
    """As YAML has it: of a section, the name of its form first, and not what is null by default."""
    if isinstance(value, Settings):
        fields = type(value).model_fields
        given = {
            key: _plain(item)
            for key, item in value
            if item is not None or fields[key].default is not None
        }
        return {tag: given[tag] for tag in ("source", "name") if tag in given} | given
    if isinstance(value, dict) and any(isinstance(item, Settings) for item in value.values()):
        options = {name: _plain(item) for name, item in value.items()}
        return options if any(options.values()) else list(options)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        # A copy: of one that is there twice, PyYAML would write an alias, which our reader refuses.
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, PurePath) else value


class _Dumper(yaml.SafeDumper):
    """Writes short lists in one line."""


def _list(dumper: yaml.SafeDumper, items: list[Any]) -> yaml.Node:
    short = not any(isinstance(item, dict) for item in items)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=short)


def _word(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    """Quoted where our reader, unlike PyYAML's, would take the bare word for something else."""
    style = None if plain_scalar(text) == text else "'"
    if "\x85" in text:  # a line end that PyYAML writes so that it is read as another
        style = '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(list, _list)
_Dumper.add_representer(str, _word)
