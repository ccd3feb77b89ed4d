"""The command ``verify``: are gradient and updates of this configuration those of plain PyTorch."""

from __future__ import annotations

from gdtrain.cli.options import (
    Parser,
    add_config,
    add_results,
    refuse,
    results_alone,
)


def verify(given: list[str]) -> int:
    """Compare the gradient computed in several ways, and a run with a plain loop."""
    parser = Parser(
        "verify",
        "Check two things on your own model, loss and data. In float64: that a batch's "
        "gradient is the same however it is computed: in microbatches, per sample, by finite "
        "differences, in two processes; and which layer or loss breaks it. As configured: that "
        "training gives the weights of a plain PyTorch loop, or which update and tensor differ "
        "first. Writes nothing.",
        examples=("verify --config minibatch.yaml",),
        notes="Exit codes: 0 all comparisons hold, 1 one of them does not, 2 bad input.",
    )
    add_config(parser)
    parser.add_argument(
        "--samples",
        type=int,
        default=64,
        metavar="N",
        help="compare on the first N samples of the first epoch (default: %(default)s)",
    )
    parser.add_argument(
        "--updates",
        type=int,
        default=50,
        metavar="N",
        help="compare the first N updates with a plain loop; 0: none (default: %(default)s)",
    )
    add_results(parser)
    options = parser.parse_intermixed_args(given)
    for name, least in (("samples", 1), ("updates", 0)):
        if (given_number := getattr(options, name)) < least:
            message = f"must be >= {least}, got {given_number}"
            refuse([(name, message)])
    with results_alone(options) as results:
        from gdtrain.config.load import load_config

        config, document = load_config(options.config, options.overrides)
        from gdtrain.cli.runs.verify_job import VerifyJob

        return VerifyJob(config, document, options.samples, options.updates, results).run()
