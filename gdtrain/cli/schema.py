"""The command ``schema``: print the JSON Schema of configurations."""

from __future__ import annotations

import json

from gdtrain.cli.options import Parser, add_import, import_modules


def schema(given: list[str]) -> int:
    """Print the JSON Schema of configurations."""
    parser = Parser(
        "schema",
        "Print the JSON Schema of configurations, which editors use to check them.",
        examples=("schema",),
    )
    add_import(parser)
    options = parser.parse_args(given)
    if options.imports:
        import_modules(options.imports)
    from gdtrain.config.json_schema import json_schema

    print(json.dumps(json_schema(), indent=2, ensure_ascii=False))
    return 0
