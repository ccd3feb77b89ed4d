"""What gdtrain has to reach, as ratios of one run, and whether it did."""

from __future__ import annotations

from statistics import median
from typing import Any

HAND, EAGER, SCAN = "hand-written loop", "gdtrain eager", "gdtrain scan"

# What is said, workload, contestant, base, limit of contestant's time / base's time.
TIME_RATIOS = [
    ("eager / hand-written, batch 1", "teaching-1", EAGER, HAND, 0.75),
    ("eager / hand-written, batch 64", "teaching-64", EAGER, HAND, 0.8),
    ("eager / hand-written, full batch", "teaching-full", EAGER, HAND, 0.8),
    ("eager / hand-written, 784-256-10", "mlp784-64", EAGER, HAND, 1.0),
    ("scan / JAX by hand, batch 1, epochs of 262,144", "teaching-long", SCAN, "JAX by hand", 1.1),
    ("scan / C by hand, batch 1, epochs of 262,144", "teaching-long", SCAN, "C by hand", 5.0),
    ("scan / JAX by hand, batch 1, epochs of 4,096", "teaching-1", SCAN, "JAX by hand", 1.1),
    ("scan / C by hand, batch 1, epochs of 4,096", "teaching-1", SCAN, "C by hand", 5.0),
    ("scan / SGDRegressor, linear, batch 1", "linear-1", SCAN, "SGDRegressor", 2.0),
    ("scan from CSV / Vowpal Wabbit", "stream", SCAN, "Vowpal Wabbit", 1.0),
    ("scan from CSV / River", "stream", SCAN, "River", 1.0),
]
# The same with the limit of base's time / contestant's time: how many times faster.
SPEEDS = [
    ("scan, 2-4-1, batch 1", "teaching-1", SCAN, HAND, 1000),
    ("scan, 2-4-1, batch 64", "teaching-64", SCAN, HAND, 20),
    ("scan, 64-128-10, batch 1", "mlp-1", SCAN, HAND, 25),
    ("scan, 64-128-10, batch 64", "mlp-64", SCAN, HAND, 5),
    ("scan, 784-256-10, batch 64", "mlp784-64", SCAN, HAND, 2),
    ("loader alone, batches of 64", "loader-64", "gdtrain loader", "DataLoader", 20),
    ("loader alone, full batch", "loader-full", "gdtrain loader", "DataLoader", 100),
    ("cuda_graph / eager, 2-4-1, batch 1", "teaching-1", "gdtrain cuda_graph", EAGER, 8),
    ("cuda_graph, share of the matrix rate", "wide-full", "gdtrain cuda_graph",
     "matrix products", 0.9),
]  # fmt: skip

Verdict = tuple[str, str, str, bool]


def verdicts(results: dict[str, Any]) -> list[Verdict]:
    """(what, the limit, what was measured, whether it holds) for all that was measured."""
    workloads = results["workloads"]
    found: list[Verdict] = []
    for said, name, contestant, base, limit in TIME_RATIOS:
        value = ratio(workloads.get(name, {}), contestant, base)
        if value is not None:
            found.append((said, f"≤ {limit:g}", f"{value:.3g}", value <= limit))
    for said, name, contestant, base, limit in SPEEDS:
        value = ratio(workloads.get(name, {}), base, contestant)
        if value is not None:
            found.append((said, f"≥ {limit:,g} ×", f"{value:,.3g} ×", value >= limit))
    starts = workloads.get("startup", {})
    if starts:
        torch, whole = starts["import torch"], starts["gdtrain, training excluded"]
        value = median(b - a for a, b in zip(torch, whole, strict=True))
        said = "whole process beyond import torch"
        found.append((said, "≤ 1 s", f"{value:.2f} s", value <= 1))
    if SCAN in workloads.get("first", {}):
        value = median(workloads["first"][SCAN])
        found.append(("first compiled block", "≤ 2 s", f"{value:.2f} s", value <= 2))
    for name in ("gdtrain loader", EAGER):
        times = [
            median(workloads[w][name])
            for w in workloads
            if w.startswith("scaling") and name in workloads[w]
        ]
        if len(times) > 1:
            value = max(times) / min(times)
            said = f"time per sample, largest / least, {name}"
            found.append((said, "≤ 1.3", f"{value:.2f}", value <= 1.3))
    return found


def ratio(times: dict[str, list[float]], above: str, below: str) -> float | None:
    """The median over the repetitions of one contestant's time over another's."""
    if above not in times or below not in times:
        return None
    return median(a / b for a, b in zip(times[above], times[below], strict=True))
