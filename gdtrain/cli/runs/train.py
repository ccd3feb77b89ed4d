"""The command that needs no name: train, as a configuration says."""

from __future__ import annotations

import argparse
from pathlib import Path
from shlex import quote

from gdtrain.cli.options import (
    Parser,
    add_config,
    add_results,
    name_of,
    results_alone,
)
from gdtrain.errors import ConfigError, Fault, OutputError
from gdtrain.output import run_directory
from gdtrain.output.terminal import results_are_files
from gdtrain.training.safety.signals import current_desk
from gdtrain.version import __version__

_COMMANDS = """\
commands (COMMAND --help shows the options of each):
  compare    train several forms and compare them in a report for the browser
  convert    convert a table of any size to a folder for source: mapped
  evaluate   compute loss and metrics of a run's model on labelled data
  export     write a run's model and preprocessing as a PyTorch or ONNX file
  init       write a configuration to start from
  landscape  draw the loss around the path of the weights
  list       list the parts that a configuration can name
  lr-range   raise the learning rate until the loss diverges; suggest one
  plot       draw loss and learning rate of one or several runs
  predict    predict for the rows of a file with the model of a run
  replay     rebuild any update of a run, and show its samples and gradient
  schema     print the JSON Schema of configurations, for editors
  sweep      train at each point of a grid of settings, and compare
  train      the same as without a command
  verify     check gradient and updates against plain PyTorch
Exit codes: 0 done, 2 bad input, 3 loss not finite, 129/130/131/143 ended by a signal, with a \
checkpoint, 1 any other error.
"""


def train(given: list[str]) -> int:
    """Train, or with an option say what would be trained."""
    parser = _parser()
    if not given:
        parser.exit(2, parser.format_help())
    options = parser.parse_intermixed_args(given)
    if options.print_config and options.json:
        message = "has no effect with --print-config, which prints YAML; remove one of the two"
        raise ConfigError([Fault("--json", message, "command line")])
    with results_alone(options) as results:
        from gdtrain.config.load import dump, load_config

        config, document = load_config(
            options.config, options.overrides, by_index=options.print_config
        )
        if options.print_config:
            print(dump(config), end="")
            return 0
        if options.resume and options.output_dir is None:
            _check_no_run(Path(options.config[0]))
        from gdtrain.cli.runs.train_job import TrainJob

        job = TrainJob(
            config=config,
            document=document,
            name=name_of(options.config),
            output_dir=options.output_dir,
            resume=options.resume,
            verify_data=options.verify_data,
            signals=current_desk(),
            quiet=options.quiet,
            results=results,
        )
        if options.dry_run:
            return job.dry_run()
        if results is None:
            results_are_files()
        return job.run()


def _check_no_run(config: Path) -> None:
    """Raise OutputError for the configuration in a run's directory, whose name says no run."""
    if config.name == run_directory.CONFIG and (config.parent / run_directory.METRICS).is_file():
        way_out = f"resume it with --output-dir {quote(str(config.parent))} --resume"
        raise OutputError(f"missing, and {config} is the configuration of a run; {way_out}")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        "",
        "Train a PyTorch model by batch, stochastic or mini-batch gradient descent.",
        examples=(
            "--config minibatch.yaml optimizer.lr=0.1 loader.batch_size=8",
            "--config batch.yaml epochs=20 --output-dir runs/mine",
        ),
        notes=_COMMANDS,
    )
    parser.usage = "python -m gdtrain --config FILE [section.key=value ...] [options]"
    add_config(parser)
    parser.add_argument(
        "--output-dir",
        metavar="DIR",
        type=Path,
        help="where results go (default: runs/<config name>/<n>)",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue the run in --output-dir, or the newest run",
    )
    parser.add_argument(
        "--verify-data",
        action="store_true",
        help="with --resume: compare mapped data byte by byte",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="make one update, evaluate one batch, write nothing",
    )
    parser.add_argument(
        "--print-config", action="store_true", help="print the resolved configuration and exit"
    )
    add_results(parser, "the summary", quiet=True)
    parser.add_argument("--version", action="version", version=f"gdtrain {__version__}")
    return parser
