"""The JSON Schema of configurations, for editors that check and complete YAML."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gdtrain.config.schema import config_model

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of a configuration with all registered parts.

    Where a section can be written as a name alone (``loss: mse``), both forms are allowed.
    """
    schema = config_model().model_json_schema()
    for section in schema["properties"].values():
        for union in list(_unions(section)):
            if "discriminator" in union:
                _allow_names(union)
            else:
                union["anyOf"] = union.pop("oneOf")
    for part in schema["$defs"].values():
        for setting in part.get("properties", {}).values():
            if "oneOf" in setting:
                setting["anyOf"] = setting.pop("oneOf")
    return {"$schema": _DIALECT, **schema}


def _unions(setting: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The unions whose members can be told apart: of forms by name, of kinds of value."""
    if "oneOf" in setting:
        yield setting
    for option in (*setting.get("oneOf", ()), *setting.get("anyOf", ()), setting.get("items")):
        if isinstance(option, dict):
            yield from _unions(option)


def _allow_names(union: dict[str, Any]) -> None:
    names = list(union.pop("discriminator")["mapping"])
    # `anyOf`: with `oneOf`, an editor that can't tell the forms apart shows every error of each.
    union["anyOf"] = [*union.pop("oneOf"), {"enum": names}]
