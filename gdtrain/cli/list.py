"""The command ``list``: the parts that a configuration can name, and what each is."""

from __future__ import annotations

from gdtrain import registry
from gdtrain.cli.options import Parser, add_import, import_modules


def list_parts(given: list[str]) -> int:
    """Print the names of all parts, or of those of one kind, each with a line that says what it is.

    Answers by the index of parts, and imports the modules that it is told to alone.
    """
    parser = Parser(
        prog="python -m gdtrain list",
        description="Print the parts that a configuration can name, each with what it is.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "kind",
        nargs="?",
        metavar="KIND",
        choices=list(registry.KINDS),
        help=f"one of {', '.join(registry.KINDS)}; all of them if left out",
    )
    add_import(parser)
    options = parser.parse_args(given)
    import_modules(options.imports)
    for kind in [options.kind] if options.kind else registry.KINDS:
        names = registry.names(kind)
        if names and not options.kind:
            print(f"{kind}:")
        indent, width = "" if options.kind else "  ", max(map(len, names), default=0)
        for name in names:
            print(f"{indent}{name:{width}}  {registry.summary(kind, name)}".rstrip())
    return 0
