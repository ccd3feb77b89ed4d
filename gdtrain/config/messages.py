"""Pydantic's complaints in the project's words, each with its place in the file."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from gdtrain.config.places import Document, KeyPath
from gdtrain.config.schema import config_model
from gdtrain.errors import Fault

MOST_TOLD = 50

# Keys that belong to another form of the same section: (section, form) -> key -> why it has none.
NO_EFFECT = {
    ("loader", "batch"): {
        "batch_size": "has no effect under batch, whose batch is every sample; "
        "remove it, or use name: minibatch",
        "drop_last": "has no effect under batch, which has no last batch; remove it",
    },
    ("loader", "sample"): {
        "batch_size": "has no effect under sample, whose batches are of one; "
        "remove it, or use name: minibatch",
        "drop_last": "has no effect under sample, whose batches are all full; remove it",
    },
}


def faults_of(document: Document, error: ValidationError) -> list[Fault]:
    """One fault a setting: where it may be of several types, pydantic complains once for each.

    Of very many, the first are told, and that there are more.
    """
    by_key: dict[str, Fault] = {}
    for details in error.errors()[:MOST_TOLD]:
        fault = _fault(document, details)
        first = by_key.setdefault(fault.key, fault)
        # Of a list that may be a word as well, what is wrong with it as a list.
        if first is not fault and details["type"] == "too_short":
            by_key[fault.key] = fault
        elif first is not fault and details["type"] == "literal_error":
            by_key[fault.key] = _or_a_word(first, details)
    faults = [
        fault
        for key, fault in by_key.items()
        if not any(other.startswith(key + "[") for other in by_key)
    ]
    more = error.error_count() - MOST_TOLD
    if more > 0:
        faults.append(document.fault((), f"has {more:,} faults besides these; correct these first"))
    return faults


def _or_a_word(fault: Fault, details: ErrorDetails) -> Fault:
    """``must be a whole number, got …`` of a setting that may be a word as well."""
    must, got, value = fault.message.partition(", got ")
    if not got or not isinstance(details["input"], str):
        return fault
    word = str(details["ctx"]["expected"]).strip("'")
    return replace(fault, message=f"{must} or {word}{got}{value}")


def _fault(document: Document, details: ErrorDetails) -> Fault:
    kind, context = details["type"], details.get("ctx", {})
    path = _path(document.data, details["loc"])
    value = details["input"]
    if kind == "misplaced" and path[-1:] != details["loc"][-1:]:
        path = (*path, details["loc"][-1])  # of a section that is given by its name alone
    if kind == "extra_forbidden":
        return document.fault(path, _unknown_key(document.data, path), of_key=True)
    if kind == "missing":
        return document.fault(path, f"missing; {_purpose(path, document.data)}")
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        tag = str(context["discriminator"]).strip("'")
        if kind == "union_tag_not_found":
            said = f"missing; it must be one of {', '.join(_forms(str(path[0]), tag))}"
            return document.fault((*path, tag), said)
        known = [name.strip(" '") for name in str(context["expected_tags"]).split(",")]
        return document.fault((*path, tag), not_among(value[tag], known))
    return document.fault(path, _message(kind, context, value, details["msg"]))


def _path(data: Any, location: tuple[int | str, ...]) -> KeyPath:
    """The error's location without what pydantic adds for the members of a union."""
    path: list[int | str] = []
    here: Any = data
    for part in location:
        if isinstance(here, str) and here == part:  # a section given by its name alone
            here = {"source": here, "name": here}
            continue
        inside = isinstance(here, dict) and part in here
        if inside or (isinstance(here, list) and part in range(len(here))):
            here = here[part]
        elif part is not location[-1] or _is_union_member(here, part):
            continue
        path.append(part)
    return tuple(path)


def _is_union_member(here: Any, part: int | str) -> bool:
    """Whether ``part`` is the tag of a section, or the type of a value, and not a key."""
    if isinstance(here, dict):
        return part in (here.get("name"), here.get("source")) or " " in str(part)
    return True


def _message(kind: str, context: Mapping[str, Any], value: Any, original: str) -> str:
    got = f"got {shown(value)}"
    bounds = {
        "greater_than_equal": (">=", "ge"),
        "greater_than": (">", "gt"),
        "less_than_equal": ("<=", "le"),
        "less_than": ("<", "lt"),
    }
    if kind in bounds:
        sign, key = bounds[kind]
        bound = context[key]
        return f"must be {sign} {bound if isinstance(bound, int) else f'{bound:g}'}, {got}"
    types = {
        "int_type": "a whole number",
        "int_from_float": "a whole number",
        "int_parsing_size": "a smaller whole number",
        "float_type": "a number",
        "finite_number": "a finite number",
        "bool_type": "true or false",
        "string_type": "a word",
        "list_type": "a list, such as [1, 2]",
        "model_type": "a mapping of settings",
        "model_attributes_type": "a name or a mapping of settings",
        "dict_type": "a mapping of settings",
    }
    if kind in types:
        return f"must be {types[kind]}, {got}"
    if kind == "literal_error":
        known = [
            name.strip(" '") for name in str(context["expected"]).replace(" or ", ",").split(",")
        ]
        return not_among(value, known)
    if kind == "string_pattern_mismatch":
        return f"must be auto, cpu, cuda, cuda:N or mps; {got}"
    if kind in ("too_short", "string_too_short"):
        return f"must hold at least {context.get('min_length')}, {got}"
    if kind in ("too_long", "string_too_long"):
        return f"must hold at most {context.get('max_length')}, {got}"
    if kind == "value_error":
        return str(context["error"])
    if kind == "misplaced":
        return str(context["said"])
    return f"{original}, {got}"


def _unknown_key(data: Any, path: KeyPath) -> str:
    key = str(path[-1])
    section = _section_at(path[:-1], data)
    if isinstance(section, dict):
        form = section.get("name")
        said = NO_EFFECT.get((str(path[0]), str(form)), {}).get(key)
        if said:
            return said
    model = _model_at(path[:-1], data)
    known = list(model.model_fields) if model else []
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if near:
        return f"unknown key; did you mean {near[0]}?"
    return f"unknown key; the keys here are {', '.join(known)}" if known else "unknown key"


def not_among(value: Any, known: list[str]) -> str:
    """What is wrong with a name that is none of the known ones, and which may be meant."""
    near = difflib.get_close_matches(str(value), known, n=1, cutoff=0.6)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"must be one of {', '.join(known)}; got {shown(value)}{hint}"


def _purpose(path: KeyPath, data: Any) -> str:
    """What a missing setting is for: the first sentence of its description."""
    model = _model_at(path[:-1], data)
    description = model.model_fields[str(path[-1])].description if model else None
    text = " ".join((description or "it is required").split()).partition(". ")[0]
    text = f"{text[:1].lower()}{text[1:]}".rstrip(".")
    return text if len(path) > 1 else f"add {path[-1]}: {text}"


def _model_at(path: KeyPath, data: Any) -> type[BaseModel] | None:
    """The pydantic model of the section at ``path``, as its name in ``data`` selects it."""
    root = config_model()
    if not path:
        return root
    if str(path[0]) not in root.model_fields:
        return None
    section = _section_at(path, data)
    if len(path) > 1 and section is None:
        return _model_below(root.model_fields[str(path[0])].annotation, path[1:])
    form = section
    if isinstance(section, dict):
        default = "sgd" if path[0] == "optimizer" else None
        form = section.get("source" if path[0] == "data" else "name", default)
    for member in _members(root.model_fields[str(path[0])].annotation):
        tag = member.model_fields.get("source") or member.model_fields.get("name")
        if tag is None or form in get_args(tag.annotation):
            return member
    return None


def _model_below(annotation: Any, path: KeyPath) -> type[BaseModel] | None:
    """The model at ``path`` within a section that has one form, if there is one."""
    members = _members(annotation)
    if len(members) != 1 or not path:
        return members[0] if len(members) == 1 else None
    field = members[0].model_fields.get(str(path[0]))
    return _model_below(field.annotation, path[1:]) if field else None


def _section_at(path: KeyPath, data: Any) -> Any:
    """The top-level section at ``path``, or the one at a place in a list of them; else None."""
    section = data.get(path[0]) if isinstance(data, dict) and path else None
    if len(path) == 2 and isinstance(section, list) and isinstance(path[1], int):
        return section[path[1]]
    return section if len(path) == 1 else None


def _forms(section: str, tag: str) -> list[str]:
    """The names of the forms that a section can have."""
    members = _members(config_model().model_fields[section].annotation)
    names = [name for m in members for name in get_args(m.model_fields[tag].annotation)]
    return list(dict.fromkeys(names))


def _members(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [member for part in get_args(annotation) for member in _members(part)]


def shown(value: Any) -> str:
    """A setting's value as a person would write it, shortened."""
    text = "nothing" if value is None else repr(value) if isinstance(value, str) else str(value)
    if isinstance(value, bool):
        text = str(value).lower()
    return text if len(text) <= 60 else text[:57] + "…"
