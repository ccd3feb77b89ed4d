"""gdtrain beside everything else that trains the same model: one run, ratios first.

python scripts/benchmarks/speed.py [--only teaching-1,stream] [--repeats 7] [--json FILE]
    [--plot FILE] [--page docs/explanation/benchmarks.md]

Each contestant is a process of its own, kept for the whole run, with one thread, and all of them
take turns on one core. All are given the same model with the same initial weights, the same data
in float32, plain SGD with the same learning rate, and the same batch size; each epoch's new random
order is part of what is timed, and so is the reading of the batches. Each one trains whole epochs,
as many as fill --window seconds, and what is compared is the time per update. The repetitions are
interleaved: first one of each contestant, then the second of each, …, so that what else the
machine does falls on all alike. A ratio is taken within each repetition; shown are the medians,
and the least and the largest.

Not timed: imports, making the data, the first epoch (which compiles and warms up), and what a
framework does before its training begins and after it has ended. ``startup`` times whole
processes; ``first`` the first epoch with compilation, in a new process each time.

A contestant that is not installed, or an engine that this machine has not, is named as missing.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from contestants import measure, report
from contestants.registry import CONTESTANTS
from contestants.workload import WORKLOADS

WORKLOAD_NAMES = [*(w.name for w in WORKLOADS), "startup", "memory"]


def main() -> None:
    options = parse()
    if options.worker:
        from contestants.worker import serve

        serve(options.worker, options.device)
        return
    if options.load:
        results = json.loads(options.load.read_text("utf-8"))
    else:
        results = measure.measure(
            options.only,
            options.contestants,
            device=options.device,
            repeats=options.repeats,
            window=options.window,
            keep=lambda results: _keep(results, options.json),
        )
    print(report.text(results))
    if options.plot:
        report.plot(results, options.plot)
    if options.page:
        text = options.page.read_text("utf-8")
        options.page.write_text(report.with_table(text, results), "utf-8")


def _keep(results: dict[str, Any], path: Path | None) -> None:
    if path is not None:
        path.write_text(json.dumps(results, indent=1) + "\n", "utf-8")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = sorted({c.name for c in CONTESTANTS})
    parser.add_argument(
        "--only",
        type=lambda text: _among(text, WORKLOAD_NAMES),
        default=WORKLOAD_NAMES,
        metavar="NAMES",
        help=f"workloads, with commas: {', '.join(WORKLOAD_NAMES)}",
    )
    parser.add_argument(
        "--contestants",
        type=lambda text: _among(text, names),
        default=names,
        metavar="NAMES",
        help=f"with commas: {', '.join(names)}",
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--repeats", type=int, default=7, help="default: %(default)s")
    parser.add_argument(
        "--window", type=float, default=0.2, metavar="SECONDS", help="of a repetition, at least"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all times")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw them (needs matplotlib)")
    parser.add_argument(
        "--page", type=Path, metavar="FILE", help="write the table between its two marks"
    )
    parser.add_argument(
        "--load", type=Path, metavar="FILE", help="measure nothing; show what --json wrote"
    )
    parser.add_argument("--worker", metavar="NAME", help=argparse.SUPPRESS)
    return parser.parse_args()


def _among(text: str, names: list[str]) -> list[str]:
    given = [name.strip() for name in text.split(",")]
    for name in given:
        if name not in names:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(names)}")
    return given


if __name__ == "__main__":
    sys.exit(main())
