"""The command ``list``: the parts that a configuration can name, and what each is."""

from __future__ import annotations

import json
from typing import Any

from gdtrain import registry
from gdtrain.cli.options import Parser, add_import, import_modules
from gdtrain.config.json_schema import settings_schema

# What a kind is called besides: by its section of a configuration, or of several parts.
_OTHER_NAMES = {"data": "source", "losses": "loss", "scheduler": "schedule"}


def list_parts(given: list[str]) -> int:
    """Print the names of all parts, or of those of one kind, each with a line that says what it is.

    Answers by the index of parts, and imports the modules that it is told to alone.
    """
    parser = Parser(
        "list",
        "Print the parts that a configuration can name: what each is, and its settings "
        "with their defaults.",
        examples=("list", "list optimizers"),
    )
    parser.add_argument(
        "kind",
        nargs="?",
        metavar="KIND",
        type=_kind,
        choices=list(registry.KINDS),
        help=f"one of {', '.join(registry.KINDS)}; default: all",
    )
    add_import(parser)
    options = parser.parse_args(given)
    if options.imports:
        import_modules(options.imports)
    for kind in [options.kind] if options.kind else registry.KINDS:
        names = registry.names(kind)
        if names and not options.kind:
            print(f"{kind}:")
        indent, width = "" if options.kind else "  ", max(map(len, names), default=0)
        settings = {name: _settings(kind, name) for name in names}
        shared = _shared(list(settings.values()))
        if shared:
            print(f"{indent}{'':{width}}  Each of them: [{', '.join(shared.values())}]")
        for name in names:
            own = [text for key, text in settings[name].items() if key not in shared]
            words = registry.summary(kind, name) + (f" [{', '.join(own)}]" if own else "")
            print(f"{indent}{name:{width}}  {words}".rstrip())
    return 0


def _shared(settings: list[dict[str, str]]) -> dict[str, str]:
    """The settings that all of several parts have, with the same defaults."""
    if len(settings) < 2:
        return {}
    first = settings[0].items()
    return {key: text for key, text in first if all(s.get(key) == text for s in settings)}


def _kind(word: str) -> str:
    """The kind that a word means: its name, that of several, or of their section."""
    word = _OTHER_NAMES.get(word.removesuffix("s") if word not in _OTHER_NAMES else word, word)
    return word if word in registry.KINDS else word.removesuffix("s")


def _settings(kind: str, name: str) -> dict[str, str]:
    """What can be set of a part: key -> itself, with its default if it has one."""
    schema, of_kind = settings_schema(kind, name), registry.KINDS[kind]
    needed = schema.get("required", ())
    return {
        key: key if key in needed else f"{key}={_yaml(setting.get('default'))}"
        for key, setting in schema["properties"].items()
        if key != of_kind.tag
        and (key not in of_kind.supplied or setting.get("default") is not None)
    }


def _yaml(value: Any) -> str:
    """A default as YAML has it."""
    plain = isinstance(value, str) and value.replace("_", "").isalnum()
    return value if plain else json.dumps(value, ensure_ascii=False)
