"""The command ``verify``: is the gradient exact on this configuration."""

from __future__ import annotations

from gdtrain.commands.options import Parser, add_config, add_import, import_modules
from gdtrain.errors import ConfigError, Fault


def verify(given: list[str]) -> int:
    """Compare the gradient computed in several ways."""
    parser = Parser(
        prog="python -m gdtrain verify",
        description="Check on your own model, loss and data, in float64, that a batch's gradient "
        "is the same however it is computed: in microbatches, per sample, by finite differences, "
        "in two processes. Says which layer or loss breaks it. Writes nothing.",
        epilog="Exit codes: 0 all comparisons hold, 1 one does not, 2 bad input.",
        allow_abbrev=False,
    )
    add_config(parser)
    parser.add_argument(
        "--samples",
        type=int,
        default=64,
        metavar="N",
        help="compare on the first N samples of the first epoch (default: %(default)s)",
    )
    add_import(parser)
    options = parser.parse_intermixed_args(given)
    if options.samples < 1:
        said = f"must be >= 1, got {options.samples}"
        raise ConfigError([Fault("--samples", said, "command line")])
    import_modules(options.imports)
    from gdtrain.config.load import load_config

    config, document = load_config(options.config, options.overrides)
    from gdtrain.jobs.verify import VerifyJob

    return VerifyJob(config, document, options.samples).run()
