"""The command that needs no name: train, as a configuration says."""

from __future__ import annotations

import argparse
from pathlib import Path

from gdtrain.cli.options import Parser, add_config, add_import, import_modules, name_of
from gdtrain.training.safety.signals import current_desk
from gdtrain.version import __version__

_HELP = """\
examples:
  python -m gdtrain --config configs/minibatch.yaml
  python -m gdtrain --config configs/minibatch.yaml optimizer.lr=0.05 epochs=40
  python -m gdtrain --config configs/minibatch.yaml --output-dir runs/mine --resume
  python -m gdtrain --config mine.yaml --import my_models
  python -m gdtrain --config base.yaml --config tuned.yaml

other commands:
  python -m gdtrain compare     train several forms side by side, with a report to look at
  python -m gdtrain convert     make a CSV file of any size a folder for source: mapped
  python -m gdtrain init        write a configuration to start from
  python -m gdtrain landscape   draw the loss around the way that the weights have taken
  python -m gdtrain list        print the parts that a configuration can name
  python -m gdtrain lr-range    raise the learning rate until the loss diverges; suggest one
  python -m gdtrain plot        draw loss and learning rate of one or several runs
  python -m gdtrain predict     predict for the rows of a file with the model of a run
  python -m gdtrain replay      rebuild the state before any update of a run, and look at it
  python -m gdtrain schema      print the JSON Schema of configurations, for editors
  python -m gdtrain train       the same as without a command
  python -m gdtrain verify      check on your model, loss and data that the gradient is exact

Exit codes: 0 done, 2 bad input, 3 loss not finite, 130/143 interrupted, 129/131 hung up or quit
(checkpoint saved), 1 else.
"""


def train(given: list[str]) -> int:
    """Train, or with an option say what would be trained."""
    parser = _parser()
    if not given:
        parser.exit(2, parser.format_help())
    options = parser.parse_intermixed_args(given)
    import_modules(options.imports)
    from gdtrain.config.load import dump, load_config

    config, document = load_config(options.config, options.overrides, by_index=options.print_config)
    if options.print_config:
        print(dump(config), end="")
        return 0
    from gdtrain.cli.jobs.train import TrainJob
    from gdtrain.training.placement.compiler_import import leave_compiler_out

    leave_compiler_out()
    job = TrainJob(
        config=config,
        document=document,
        name=name_of(options.config),
        output_dir=options.output_dir,
        resume=options.resume,
        verify_data=options.verify_data,
        signals=current_desk(),
    )
    return job.dry_run() if options.dry_run else job.run()


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m gdtrain",
        description="Train a PyTorch model by batch, stochastic or mini-batch gradient descent.",
        epilog=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_config(parser)
    parser.add_argument(
        "--output-dir",
        metavar="DIR",
        type=Path,
        help="where results go (default: runs/<config name>/<n>); never another run's",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run in --output-dir, or the newest one of this config",
    )
    parser.add_argument(
        "--verify-data",
        action="store_true",
        help="with --resume: read mapped data whole, though size and time say it is unchanged",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="build everything, make one update, evaluate one batch, write nothing",
    )
    parser.add_argument(
        "--print-config", action="store_true", help="print the resolved configuration and stop"
    )
    add_import(parser)
    parser.add_argument("--version", action="version", version=f"gdtrain {__version__}")
    return parser
