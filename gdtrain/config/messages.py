"""Pydantic's complaints in the project's words, each with its place in the file."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from gdtrain import registry
from gdtrain.config.schema import KIND_OF, MAPPINGS, Config
from gdtrain.config.yaml_source import Document, KeyPath
from gdtrain.errors import Fault
from gdtrain.registry import OWN_PART, SECTIONS, are_named, not_among, settings_of, shown
from gdtrain.settings import descriptions
from gdtrain.wording import nearest

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
    if kind == "extra_forbidden":
        return document.fault(path, _unknown_key(document.data, path), of_key=True)
    missing = kind == "missing" or (len(path) == 1 and path[0] not in document.data)
    if missing:  # or has a default, which does not do here
        return document.fault(path, f"missing; {_purpose(path, document.data)}")
    if path == ("device",):  # the one setting that has to fit a pattern
        kind = "string_pattern_mismatch"
    return document.fault(path, _message(kind, context, value, details["msg"]))


def _path(data: Any, location: tuple[int | str, ...]) -> KeyPath:
    """The error's location without what pydantic adds for the members of a union."""
    path: list[int | str] = []
    here: Any = data
    for part in location:
        if _is_named_alone(path, here, part):
            path.append(part)
            here = {}
            continue
        if isinstance(here, str) and _kind_at(path, data) and " " not in str(part):
            here = {"source": here, "name": here}  # it is given by its name alone
        inside = isinstance(here, dict) and part in here
        if inside or (isinstance(here, list) and part in range(len(here))):
            here = here[part]
        elif here is data and part in Config.model_fields:
            here = None  # it is left out
        elif part is not location[-1] or _is_union_member(here, part):
            continue
        path.append(part)
    return tuple(path)


def _is_named_alone(path: list[int | str], here: Any, part: int | str) -> bool:
    """Whether ``part`` is one that a list of names has, without options."""
    if len(path) != 1 or path[0] not in MAPPINGS or not isinstance(here, str | list):
        return False
    return part in registry.names(MAPPINGS[str(path[0])])


def _kind_at(path: Sequence[int | str], data: Any) -> str | None:
    """The kind of the part that a section names: at its top, in a list or by a name of its own."""
    if list(path[:1]) == ["phases"] and len(path) > 2:
        return _kind_at(path[2:], data["phases"][path[1]])
    if not path or path[0] not in KIND_OF or len(path) > 2:
        return None
    inside = len(path) == 1 or isinstance(path[1], int) or are_named(data.get(path[0]))
    return KIND_OF[str(path[0])] if inside else None


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
        "list_type": f"a list, such as [{'1, 2' if isinstance(value, dict) else value}]",
        "model_type": "a mapping of settings",
        "dict_type": "a mapping of settings",
    }
    if kind == "string_type" and isinstance(value, int | float) and not isinstance(value, bool):
        return f"must be text, {got}; put it in quotes: '{value}'"
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
        return str(context["message"])
    return f"{original}, {got}"


def _unknown_key(data: Any, path: KeyPath) -> str:
    key = str(path[-1])
    section = _section_at(path[:-1], data)
    if isinstance(section, dict):
        form = section.get("name")
        message = NO_EFFECT.get((str(path[0]), str(form)), {}).get(key)
        if message:
            return message
    model = _model_at(path[:-1], data)
    known = list(model.model_fields) if model else []
    if path[-2:-1] == ("optimizer",) and "parameters" in known:  # which one of several has
        known.remove("parameters")
    if str(path[0]) in MAPPINGS and len(path) == 2:
        known = registry.names(MAPPINGS[str(path[0])])
        if path[0] == "callbacks" and key in SECTIONS:
            return f"unknown key; {key} is a section beside callbacks"
        if nearest(key, known) is None:
            return f"unknown key; {OWN_PART}"
    key = _OTHER_KEYS.get(key, key)
    near = _sections_of(key, data) if len(path) == 1 else []
    meant = near[0] if near else key if key in known else nearest(key, known)
    if meant:
        return f"unknown key; did you mean {meant}?"
    return f"unknown key; the keys here are {', '.join(known)}" if known else "unknown key"


# What settings are called elsewhere.
_OTHER_KEYS = {
    "learning_rate": "lr",
    "max_epochs": "epochs",
    "num_epochs": "epochs",
    "n_epochs": "epochs",
    "criterion": "loss",
    "gradient_clip_val": "clip_grad_norm",
    "max_grad_norm": "clip_grad_norm",
    "shuffle": "order",
    "val_split": "validation_fraction",
    "hidden_layer_sizes": "hidden",
    "l2": "weight_decay",
}


def _sections_of(key: str, data: Any) -> list[str]:
    """Where a key belongs that stands outside of its section: ``lr`` is ``optimizer.lr``.

    In a section as the configuration has it; else in one with another part's name.
    """
    if key in Config.model_fields:
        return []
    models = {section: _model_at((section,), data) for section in Config.model_fields}
    here = [f"{name}.{key}" for name, m in models.items() if m and key in m.model_fields]
    return here or [
        f"{section}.{key} (of {name})"
        for section, kind in KIND_OF.items()
        for name in registry.names(kind)
        if section in Config.model_fields and key in _keys_of(kind, name)
    ]


def _keys_of(kind: str, name: str) -> Collection[str]:
    """The settings of a part by name, for which no class is made."""
    part = registry.index()[kind].get(name)
    if part is not None:
        keys: dict[str, Any] = part["settings"]["properties"]
        return keys
    return registry.find(kind, name).settings.model_fields


def _purpose(path: KeyPath, data: Any) -> str:
    """What a missing setting is for: the first sentence of its description."""
    model = _model_at(path[:-1], data)
    description = descriptions(model).get(str(path[-1])) if model else None
    needed = "it is required"
    if _kind_at(path[:-1], data) == "model":
        needed += f" (what a model is given: {', '.join(registry.KINDS['model'].supplied)})"
    text = " ".join((description or needed).split()).partition(". ")[0]
    text = f"{text[:1].lower()}{text[1:]}".rstrip(".")
    return text if len(path) > 1 else f"add {path[-1]}: {text}"


def _model_at(path: KeyPath, data: Any) -> type[BaseModel] | None:
    """The pydantic model of the section at ``path``, as its name in ``data`` selects it."""
    if not path:
        return Config
    key, section = str(path[0]), _section_at(path, data)
    if key in MAPPINGS:
        return settings_of(MAPPINGS[key], str(path[1]), True) if len(path) == 2 else None
    of = _kind_at(path, data)
    if of is None:
        field = Config.model_fields.get(key) if key not in KIND_OF else None
        return _model_below(field.annotation, path[1:]) if field else None
    if are_named(section):
        return None
    kind = registry.KINDS[of]
    name = section.get(kind.tag, kind.default) if isinstance(section, dict) else section
    return settings_of(kind.name, name, True) if name in registry.names(kind.name) else None


def _model_below(annotation: Any, path: KeyPath) -> type[BaseModel] | None:
    """The model at ``path`` within a section that has one form, or a list of it."""
    members = _members(annotation)
    keys = [key for key in path if isinstance(key, str)]
    if len(members) != 1 or not keys:
        return members[0] if len(members) == 1 else None
    field = members[0].model_fields.get(keys[0])
    return _model_below(field.annotation, tuple(keys[1:])) if field else None


def _section_at(path: KeyPath, data: Any) -> Any:
    """What stands at ``path``; None if nothing does."""
    for part in path:
        inside = isinstance(data, dict) and part in data
        if not inside and not (isinstance(data, list) and part in range(len(data))):
            return None
        data = data[part]
    return data


def _members(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [member for part in get_args(annotation) for member in _members(part)]
