"""A small reading of JSON Schema 2020-12: what the schema of configurations has against a value."""

import re
from typing import Any

from gdtrain.config.json_schema import json_schema

SCHEMA = json_schema()


def errors(value: Any, schema: Any, at: str = "$") -> list[str]:
    """What a small reading of JSON Schema 2020-12 has against a value.

    It knows the keywords that pydantic writes for our configuration; test_keywords_are_known
    makes sure that there are no others.
    """
    if "$ref" in schema:
        return errors(value, SCHEMA["$defs"][schema["$ref"].removeprefix("#/$defs/")], at)
    found = []
    if "anyOf" in schema and all(errors(value, option, at) for option in schema["anyOf"]):
        found.append(f"{at}: fits no form")
    if "oneOf" in schema and sum(not errors(value, option, at) for option in schema["oneOf"]) != 1:
        found.append(f"{at}: does not fit exactly one form")
    if "const" in schema and value != schema["const"]:
        found.append(f"{at}: is not {schema['const']}")
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{at}: is not among {schema['enum']}")
    kinds = {
        "object": isinstance(value, dict),
        "array": isinstance(value, list),
        "string": isinstance(value, str),
        "boolean": isinstance(value, bool),
        "null": value is None,
        "integer": isinstance(value, int) and not isinstance(value, bool),
        "number": isinstance(value, int | float) and not isinstance(value, bool),
    }
    if "type" in schema and not kinds[schema["type"]]:
        return [*found, f"{at}: is not of type {schema['type']}"]
    if isinstance(value, dict) and "properties" in schema:
        found += [f"{at}: lacks {key}" for key in schema.get("required", []) if key not in value]
        for key, item in value.items():
            if key in schema["properties"]:
                found += errors(item, schema["properties"][key], f"{at}.{key}")
            elif schema.get("additionalProperties") is False:
                found.append(f"{at}.{key}: unknown")
    if isinstance(value, list):
        found += [f"{at}: too short"] * (len(value) < schema.get("minItems", 0))
        found += [f"{at}: too long"] * (len(value) > schema.get("maxItems", len(value)))
        for i, item in enumerate(value):
            found += errors(item, schema.get("items", {}), f"{at}[{i}]")
    if isinstance(value, str):
        found += [f"{at}: too short"] * (len(value) < schema.get("minLength", 0))
        found += [f"{at}: too long"] * (len(value) > schema.get("maxLength", len(value)))
        found += [f"{at}: no match"] * (not re.search(schema.get("pattern", ""), value))
    if kinds["number"]:
        found += [f"{at}: too small"] * (value < schema.get("minimum", value))
        found += [f"{at}: too large"] * (value > schema.get("maximum", value))
        found += [f"{at}: too small"] * (value <= schema.get("exclusiveMinimum", value - 1))
        found += [f"{at}: too large"] * (value >= schema.get("exclusiveMaximum", value + 1))
    return found
