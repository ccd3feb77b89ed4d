"""Draw the edge of stability: sharpness and loss of configs/edge_of_stability.yaml, by updates.

python scripts/draw_edge_of_stability.py [--run DIRECTORY] [--output PICTURE]

Trains the configuration first, in under a minute, unless ``--run`` names the directory of a run
with the monitor ``sharpness``.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import matplotlib

from gdtrain.cli.main import main as gdtrain
from gdtrain.output.run_directory import read_metrics

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "configs" / "edge_of_stability.yaml"
# Colours of Okabe and Ito (2008), which colour-blind readers can tell apart.
BLUE, VERMILLION, GREEN = "#0072B2", "#D55E00", "#009E73"


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the edge of stability.")
    parser.add_argument("--run", type=Path, help="directory of a run; trained again if left out")
    picture = ROOT / "scripts" / "results" / "edge_of_stability.png"
    parser.add_argument("--output", type=Path, default=picture, help="PNG or SVG")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        run = options.run or Path(directory) / "run"
        if options.run is None:
            code = gdtrain(["--config", str(CONFIG), "--output-dir", str(run)])
            if code:
                raise SystemExit(code)
        records = read_metrics(run / "metrics.jsonl")
    draw([r for r in records if r["kind"] == "step" and "sharpness" in r], options.output)
    print(f"drawn: {options.output}")


def draw(records: list[dict[str, Any]], output: Path) -> None:
    """Sharpness with its limit above, the loss below; 800 pixels wide."""
    matplotlib.use("agg")
    from matplotlib import pyplot, ticker

    steps = [r["step"] for r in records]
    limits = [2 * r["stability_limit"] / r["lr"] for r in records]
    figure, (above, below) = pyplot.subplots(
        2, 1, figsize=(8, 6), sharex=True, layout="constrained", height_ratios=(3, 2)
    )
    lr, last = records[-1]["lr"], limits[-1]
    plain = records[-1]["stability_limit"] == 1
    limit = f"{'2 / lr' if plain else 'limit with this momentum'} = {last:.3g}"
    figure.suptitle(f"Full-batch descent at lr = {lr:g} rises to the edge of stability")
    above.plot(steps, [r["sharpness"] for r in records], color=BLUE, label="sharpness λ")
    above.plot(steps, limits, color=VERMILLION, linestyle="--", label=limit)
    above.set_ylabel("sharpness λ\n(largest Hessian eigenvalue)")
    above.set_ylim(bottom=0)
    above.legend(loc="lower right", frameon=False)
    below.plot(steps, [r["loss"] for r in records], color=GREEN)
    below.set_yscale("log")
    below.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    below.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
    below.yaxis.set_minor_formatter(ticker.NullFormatter())
    below.set_ylabel("training loss\n(mean squared error)")
    below.set_xlabel("updates (one each epoch)")
    for axis in (above, below):
        axis.grid(color="0.9")
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(output, dpi=100)


if __name__ == "__main__":
    main()
