"""What the seeds of a comparison say together: intervals, pairs, survival curves and profiles."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any

from gdtrain.analysis.statistics import intervals
from gdtrain.analysis.statistics.pairs import ALPHA, Pair, holm, more_seeds, paired
from gdtrain.analysis.statistics.survival import median_time, profile, reached_by
from gdtrain.output.report.table import metrics
from gdtrain.wording import best_of

FACTORS = (1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0)  # times the best, of the profiles

Form = dict[str, Any]


@dataclass(frozen=True)
class Measure:
    """Something by which forms are compared: its name, its value in a run, and what is better.

    value: None for a run that has none, which is worse than any. tested: whether forms are told
    apart by it; every test more makes each of them stricter.
    """

    name: str
    value: Callable[[Form], float | None]
    higher: bool = False
    tested: bool = True


def statistics_of(forms: list[Form]) -> dict[str, Any] | None:
    """Of forms with ``runs`` of the same seeds; all in plain values, None without a whole seed.

    ``measures``: of each, by form the mean and the median with intervals of 95 %, and the pairs,
    corrected by Holm over the pairs of all measures together, so that a table of equal forms names
    a winner in at most one of twenty comparisons. Times and losses are taken in logarithms, and
    so are their means geometric ones, if all are > 0.
    """
    complete = _complete(forms)
    if not complete[0]["runs"]:
        return None
    measures = _measures(complete)
    values = {
        m.name: [[m.value(run) for run in form["runs"]] for form in complete] for m in measures
    }
    logs = {m.name: not m.higher and _positive(values[m.name]) for m in measures}
    pairs = {m.name: _pairs(m, complete, values[m.name], log=logs[m.name]) for m in measures}
    tested = iter(holm([pair for own in pairs.values() for pair in own]))
    alpha = ALPHA / max(1, sum(map(len, pairs.values())))
    return {
        "seeds": [run["seed"] for run in complete[0]["runs"]],
        "measures": {
            m.name: {
                "better": "higher" if m.higher else "lower",
                "scale": "log" if logs[m.name] else "plain",
                "forms": {
                    form["name"]: _summary(own, log=logs[m.name])
                    for form, own in zip(complete, values[m.name], strict=True)
                },
                "pairs": [_plain(m, next(tested), alpha) for _ in pairs[m.name]],
            }
            for m in measures
        },
        "reached": {form["name"]: _survival(form["runs"]) for form in complete},
        "profiles": _profiles(complete),
    }


def _complete(forms: list[Form]) -> list[Form]:
    """The forms, cut to the seeds with which all of them have spent their budget."""
    whole = [[run["seed"] for run in f["runs"] if run["status"] != "interrupted"] for f in forms]
    seeds = set(whole[0]).intersection(*whole)
    return [{**f, "runs": [run for run in f["runs"] if run["seed"] in seeds]} for f in forms]


def _measures(forms: list[Form]) -> list[Measure]:
    found = [
        Measure("seconds_to_target", _seconds),
        Measure("full_loss", partial(_final, "full_loss")),
        Measure("share_that_raised", lambda run: run["stability"]["share_that_raised"]),
    ]
    names = metrics(forms)
    found += [Measure(name, partial(_final, name), tested=False) for name in names[:-1]]
    found += [Measure(n, partial(_final, n), best_of(n) == "max") for n in names[-1:]]
    return found


def _seconds(run: Form) -> float | None:
    return run["to_target"]["seconds"] if run["to_target"] else None


def _final(name: str, run: Form) -> float | None:
    return None if run["status"] == "diverged" else run["final"].get(name)


def _positive(values: list[list[float | None]]) -> bool:
    return all(value is None or value > 0 for own in values for value in own)


def _pairs(
    measure: Measure, forms: list[Form], values: list[list[float | None]], *, log: bool
) -> list[Pair]:
    """The pairs of one measure, except where all is alike: that is no question."""
    if not measure.tested:
        return []
    if measure.higher:  # as costs
        values = [[None if value is None else -value for value in own] for own in values]
    return [
        paired(forms[a]["name"], forms[b]["name"], (values[a], values[b]), log=log)
        for a, b in combinations(range(len(forms)), 2)
        if values[a] != values[b]
    ]


def _summary(own: list[float | None], *, log: bool) -> dict[str, Any]:
    known = [value for value in own if value is not None]
    summary: dict[str, Any] = {"known": len(known), "of": len(own), "values": own}
    if len(known) == len(own):
        mean = intervals.mean(known, log=log)
        summary |= {"mean": mean.center, "low": mean.low, "high": mean.high}
    middle = intervals.median([math.inf if value is None else value for value in own])
    names = ("median", "median_low", "median_high")
    ends = (middle.center, middle.low, middle.high)
    finite = [None if end is None or not math.isfinite(end) else end for end in ends]
    return summary | dict(zip(names, finite, strict=True)) | {"median_level": middle.level}


def _plain(measure: Measure, pair: Pair, alpha: float) -> dict[str, Any]:
    """A pair as ``ratio`` of second to first, or ``difference`` second - first, with its ends."""
    ends = [pair.difference, pair.low, pair.high]
    if pair.log:
        shown = [None if end is None else math.exp(min(700.0, end)) for end in ends]
    elif measure.higher:
        shown = [None if ends[i] is None else -ends[i] for i in (0, 2, 1)]  # type: ignore[operator]
    else:
        shown = ends
    center, low, high = shown
    return {
        "first": pair.first,
        "second": pair.second,
        "ratio" if pair.log else "difference": center,
        "low": low,
        "high": high,
        "p": pair.p,
        "told": pair.told,
        "more_seeds": None if pair.told else more_seeds(pair, alpha),
    }


def _survival(runs: list[Form]) -> dict[str, Any]:
    """When which share of the runs had reached the target, and when half of them had."""
    times, ends = [_seconds(run) for run in runs], [run["seconds"] for run in runs]
    seconds, shares = reached_by(times, ends)
    half = median_time(times, ends)
    return {
        "runs": sum(time is not None for time in times),
        "of": len(runs),
        "seconds": seconds,
        "share": shares,
        "median": half if math.isfinite(half) else None,
    }


def _profiles(forms: list[Form]) -> dict[str, Any]:
    costs = {form["name"]: [_seconds(run) for run in form["runs"]] for form in forms}
    return {"factors": list(FACTORS), "forms": profile(costs, FACTORS)}
