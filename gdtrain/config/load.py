"""From a YAML file and overrides to a checked configuration, or to every fault in them at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from gdtrain.config.faults import faults_of
from gdtrain.config.schema import Config, config_model
from gdtrain.config.yaml_source import Document, apply_overrides, read_file
from gdtrain.errors import ConfigError, Fault


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> tuple[Config, Document]:
    """Read, override and check a configuration; the document keeps the place of each setting.

    Raises ConfigError that lists every fault with file, line and column.
    """
    document = read_file(path)
    apply_overrides(document, list(overrides))
    return check(document), document


def parse_config(data: Mapping[str, Any]) -> Config:
    """Check a configuration given as a dict. Raises ConfigError that lists every fault."""
    try:
        return config_model().model_validate(dict(data))
    except ValidationError as error:
        faults = faults_of(Document("", dict(data)), error)
        raise ConfigError([Fault(fault.key, fault.message) for fault in faults]) from None


def check(document: Document) -> Config:
    """The configuration in a document. Raises ConfigError with every fault and its place."""
    try:
        return config_model().model_validate(document.data)
    except ValidationError as error:
        faults = faults_of(document, error)
    raise ConfigError(sorted(faults, key=lambda f: (f.path or "", f.line, f.column)))


def dump(config: Config) -> str:
    """The configuration as YAML, every default filled in; loading it gives the same again."""
    data = config.model_dump(exclude_none=True)
    for key, section in data.items():
        if isinstance(section, dict):
            data[key] = {
                tag: section[tag] for tag in ("source", "name") if tag in section
            } | section
    text: str = yaml.dump(
        data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False
    )
    return text


class _Dumper(yaml.SafeDumper):
    """Writes short lists in one line, and never an alias, which the reader would refuse."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _list(dumper: yaml.SafeDumper, items: list[Any]) -> yaml.Node:
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)


_Dumper.add_representer(list, _list)
