"""The JSON Schema of configurations, for editors that check and complete YAML."""

from __future__ import annotations

from typing import Any

from gdtrain import registry
from gdtrain.config.schema import Config

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of a configuration with all registered parts.

    Where a section can be written as a name alone (``loss: mse``), both forms are allowed.
    """
    schema = Config.model_json_schema()
    own = _Definitions(schema.get("$defs", {}))
    schema["properties"] = own.filled(schema["properties"])
    schema["$defs"] = own.definitions
    schema["anyOf"] = [{"required": ["optimizer"]}, {"required": ["phases"]}]
    return {"$schema": _DIALECT, **schema}


class _Definitions:
    """The schemas of sections and parts, gathered as they are referred to."""

    def __init__(self, definitions: dict[str, Any]) -> None:
        self.definitions: dict[str, Any] = {}
        for name, schema in definitions.items():
            self.definitions[name] = self.filled(schema)

    def filled(self, schema: Any) -> Any:
        """The schema with those of all parts where it says that some are named."""
        if isinstance(schema, list):
            return [self.filled(item) for item in schema]
        if not isinstance(schema, dict):
            return schema
        found = {key: self.filled(item) for key, item in schema.items()}
        # pydantic before 2.9 writes a reference in a list of one, before 2.10 a constant twice.
        found |= found.pop("allOf", [{}])[0]
        if "const" in found:
            found.pop("enum", None)
        for key in ("part", "parts"):
            if isinstance(found.get(key), str):
                found |= {"anyOf": getattr(self, f"_{key}")(found.pop(key))}
        # `anyOf`: with `oneOf`, an editor that can't tell the forms apart shows errors of each.
        if "oneOf" in found:
            found["anyOf"] = found.pop("oneOf")
        if "anyOf" in found:
            found["anyOf"] = [inner for option in found["anyOf"] for inner in _options(option)]
        return found

    def _part(self, kind: str) -> list[Any]:
        """One part, by name or as a mapping."""
        names, alone = registry.names(kind), registry.KINDS[kind].name_is_enough
        with_options = [
            name
            for name in names
            if not alone or len(settings_schema(kind, name)["properties"]) > 1
        ]
        references = [{"$ref": self._reference(kind, name)} for name in with_options]
        return [*references, {"enum": names}]

    def _parts(self, kind: str) -> list[Any]:
        """Some parts: each with its options, or a list of names, or a name."""
        names = registry.names(kind)
        options = {
            name: {
                "anyOf": [{"$ref": self._reference(kind, name)}, {"type": "null"}],
                "description": registry.summary(kind, name),
            }
            for name in names
        }
        self.definitions[f"{kind}s"] = {
            "additionalProperties": False,
            "description": f"Each {kind} with its options.",
            "properties": options,
            "title": f"{kind}s",
            "type": "object",
        }
        one = {"enum": names}
        listed = [one, {"type": "array", "items": one}] if names else []
        return [{"$ref": f"#/$defs/{kind}s"}, *listed]

    def _reference(self, kind: str, name: str) -> str:
        key = f"{name}_{kind}"
        if key not in self.definitions:
            schema = dict(settings_schema(kind, name))
            for inner, described in schema.pop("$defs", {}).items():
                self.definitions[f"{key}.{inner}"] = self.filled(_renamed(described, key))
            self.definitions[key] = self.filled(_renamed(schema, key))
        return f"#/$defs/{key}"


def _options(schema: dict[str, Any]) -> list[Any]:
    """What a union in a union may be."""
    inner: list[Any] = schema["anyOf"] if set(schema) == {"anyOf"} else [schema]
    return inner


def settings_schema(kind: str, name: str) -> dict[str, Any]:
    """The JSON Schema of a part's settings, by the index if it is built in."""
    known: dict[str, Any] | None = registry.index()[kind].get(name)
    if known is not None:
        settings: dict[str, Any] = known["settings"]
        return settings
    return registry.find(kind, name).settings.model_json_schema()


def _renamed(schema: Any, key: str) -> Any:
    """The schema with references to definitions of its own by their names among all."""
    if isinstance(schema, list):
        return [_renamed(item, key) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: _renamed(item, key) for name, item in schema.items()}
    if isinstance(found.get("$ref"), str):
        found["$ref"] = found["$ref"].replace("#/$defs/", f"#/$defs/{key}.")
    return found
