"""The rows of a sweep, and what they say: groups over seeds, the best one, and what is as good."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gdtrain.analysis.statistics import intervals
from gdtrain.analysis.statistics.pairs import ALPHA, Pair, holm, more_seeds, paired
from gdtrain.analysis.statistics.survival import near_the_best, profile
from gdtrain.analysis.sweep.grid import SEED, Point, key_of
from gdtrain.wording import best_of, counted, html_table

FEWEST_SEEDS = 5  # from which on a setting may be recommended
SHOWN = 20  # rows of the table
PROFILED = 8  # settings, of performance profiles
FACTORS = (1.0, 1.01, 1.02, 1.05, 1.1, 1.2, 1.5, 2.0, 3.0, 5.0, 10.0)  # times the best, of these
RATE = "lr"  # how the setting of the learning rate ends
SIZES = ("batch_size", "loader")  # and those of the batch size
OVER = ("done", "stopped")  # the statuses of runs whose numbers count

Row = dict[str, Any]
Mode = Literal["min", "max"]


@dataclass(frozen=True)
class Group:
    """The runs of one setting, over all its seeds.

    values: of the measure, one a seed; None of a run that diverged or failed.
    """

    setting: Point
    seeds: tuple[Any, ...]
    values: tuple[float | None, ...]
    statuses: tuple[str, ...]

    @property
    def name(self) -> str:
        """``lr=0.1 batch_size=16``."""
        return " ".join(f"{key}={_shown(value)}" for key, value in self.setting.items()) or "all"

    @property
    def title(self) -> str:
        """The name within a sentence: ``lr=0.1``, or ``(lr=0.1, batch_size=16)``."""
        if len(self.setting) < 2:
            return self.name
        return f"({', '.join(f'{key}={_shown(value)}' for key, value in self.setting.items())})"

    def mean(self, *, log: bool) -> intervals.Interval | None:
        """The mean with its interval, or None where a run has no value."""
        known = [value for value in self.values if value is not None]
        return intervals.mean(known, log=log) if len(known) == len(self.values) else None

    def cost(self, *, log: bool, higher: bool) -> float:
        """What the groups are sorted by: less is better, and any failure is worse than none."""
        mean = self.mean(log=log)
        return math.inf if mean is None else -mean.center if higher else mean.center


class Sweep(list[Row]):
    """The rows of a sweep, in the order of the grid; ``str()`` is a table with what it says.

    Each row is a flat dict, so that ``pandas.DataFrame(rows)`` is a table: the settings of the run,
    ``run`` (its number), ``status`` (``done``, ``stopped``, ``diverged``, ``failed``), ``reason``,
    and its numbers. A run that is not over has no row.

    settings: the names of the grid. by: the number by which runs are compared. higher: whether
    the higher is the better. interrupted: whether runs are missing. ended_by: the signal that
    ended the sweep, or 0.
    """

    def __init__(
        self,
        rows: Iterable[Row],
        settings: Sequence[str],
        by: str | None,
        *,
        interrupted: bool,
        mode: Mode | None = None,
    ) -> None:
        super().__init__(rows)
        self.settings = list(settings)
        self.by = by or ("val_loss" if any("val_loss" in row for row in self) else "train_loss")
        self.higher = (mode or best_of(self.by)) == "max"
        self.interrupted = interrupted
        self.ended_by = 0

    @property
    def log(self) -> bool:
        """Whether the measure is compared by its logarithm: a loss that is > 0 throughout."""
        known = [value for row in self if (value := self._value(row)) is not None]
        return self.by.endswith(("loss", "seconds")) and all(value > 0 for value in known)

    def groups(self) -> list[Group]:
        """The settings without their seeds, the best first."""
        found: dict[str, list[Row]] = {}
        names = [name for name in self.settings if name != SEED]
        for row in self:
            found.setdefault(key_of({name: row[name] for name in names}), []).append(row)
        groups = [
            Group(
                {name: rows[0][name] for name in names},
                tuple(row.get(SEED) for row in rows),
                tuple(self._value(row) for row in rows),
                tuple(row["status"] for row in rows),
            )
            for rows in found.values()
        ]
        log = self.log
        return sorted(groups, key=lambda group: group.cost(log=log, higher=self.higher))

    @property
    def best(self) -> Row | None:
        """The single row with the best number, or None if no run has one."""
        known = [row for row in self if self._value(row) is not None]
        sign = -1 if self.higher else 1
        return min(known, key=lambda row: sign * (self._value(row) or 0.0), default=None)

    def pairs(self) -> list[Pair]:
        """The best setting against each other one, on the seeds of both, corrected (Holm).

        Without those of which every run has failed.
        """
        made = []
        first, *others = [g for g in self.groups() if any(v is not None for v in g.values)] or [
            _NONE
        ]
        for other in others:
            both = [seed for seed in first.seeds if seed in other.seeds]
            if len(both) > 1:
                values = tuple(_costs(group, both, higher=self.higher) for group in (first, other))
                made.append(paired(first.name, other.name, (values[0], values[1]), log=self.log))
        return holm(made)

    def sensitivity(self) -> dict[str, float]:
        """How little the learning rate matters: the share of rates within 10 % of the best.

        For each choice of the other settings. Empty without several rates.
        """
        rate = next((s for s in self.settings if s.rpartition(".")[2] == RATE), None)
        found: dict[str, list[float | None]] = {}
        for group in self.groups():
            mean = group.mean(log=self.log)
            rest = " ".join(f"{k}={_shown(v)}" for k, v in group.setting.items() if k != rate)
            value = None if mean is None else -mean.center if self.higher else mean.center
            found.setdefault(rest or "all", []).append(value)
        if rate is None or all(len(losses) < 2 for losses in found.values()):
            return {}
        shares = {rest: near_the_best(losses) for rest, losses in found.items()}
        return {rest: share for rest, share in shares.items() if share is not None}

    def sentence(self) -> str:
        """What to use, if the seeds support it; else what they do not tell apart."""
        first, *others = self.groups() or [_NONE]
        best = first.cost(log=self.log, higher=self.higher)
        if best == math.inf:
            failed = (row["reason"] for row in self if row["status"] == "failed")
            why = next((f"; the first that failed: {reason}" for reason in failed), "")
            return f"No setting has a number for each of its runs{why}."
        if not others:
            return "Only one setting was run, so there is nothing to compare."
        if min(len(group.seeds) for group in (first, *others)) < FEWEST_SEEDS:
            equal = [g.title for g in others if g.cost(log=self.log, higher=self.higher) == best]
            found = f"{first.title} was best" if not equal else _listed([first.title, *equal])
            found += "" if not equal else " are equally good"
            runs = counted(len(first.seeds), "seed")
            return f"{found}; with {runs} this is not conclusive, use at least {FEWEST_SEEDS}."
        pairs = self.pairs()
        untold = [pair for pair in pairs if not pair.told]
        if not untold:
            one_rate = ", each tried at one learning rate" if self._has_sizes_alone() else ""
            return f"Use {first.title}: it is better than every other setting{one_rate}."
        titles = {group.name: group.title for group in others}
        names = [titles[pair.second] for pair in untold]
        needed = [more_seeds(pair, ALPHA / len(pairs)) for pair in untold]
        known = [number for number in needed if number is not None]
        more = f"about {max(known):,} more seeds might" if len(known) == len(needed) else ""
        more = more or "more than a thousand seeds would be needed"
        return f"These seeds do not distinguish {first.title} from {_listed(names)} ({more})."

    def _has_sizes_alone(self) -> bool:
        """Whether batch sizes were varied, whose best learning rates differ, and no rates."""
        ends = {setting.rpartition(".")[2] for setting in self.settings}
        return RATE not in ends and not ends.isdisjoint(SIZES)

    def csv(self) -> str:
        """The rows as CSV, with a column for whatever any of them has."""
        columns = list(dict.fromkeys(name for row in self for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self)
        return text.getvalue()

    def as_dict(self) -> dict[str, Any]:
        """What the rows say, in plain values: groups, the best first, profiles and the sentence."""
        log = self.log
        groups = self.groups()
        return {
            "settings": self.settings,
            "by": self.by,
            "higher": self.higher,
            "log": log,
            "interrupted": self.interrupted,
            "sentence": self.sentence(),
            "groups": [_plain(group, log=log) for group in groups],
            "profiles": self._profiles(groups),
        }

    def html(self) -> str:
        """The rows as a page that needs nothing besides itself, with pictures of the settings."""
        from gdtrain.output.report.sweep.page import page

        return page(self.as_dict())

    def _profiles(self, groups: Sequence[Group]) -> dict[str, Any]:
        """Performance profiles of the best settings over the seeds that all of them have."""
        best = groups[:PROFILED]
        seeds = [s for s in (best[0].seeds if best else ()) if all(s in g.seeds for g in best)]
        if not self.log or len(seeds) < 2 or len(best) < 2:
            return {"factors": [], "groups": {}}
        costs = {group.name: _costs(group, seeds, higher=False) for group in best}
        return {"factors": list(FACTORS), "groups": profile(costs, FACTORS)}

    def __str__(self) -> str:
        lines, notes = self._table()
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        shown = ["  ".join(map(str.rjust, line, widths)).rstrip() for line in lines]
        return "\n".join([*shown, *notes, "", self.sentence()])

    def _repr_html_(self) -> str:
        (head, *rows), notes = self._table()
        return html_table(head, rows, " ".join([*notes, self.sentence()]))

    def _table(self) -> tuple[list[list[str]], list[str]]:
        """The best groups as rows of texts below their heads, and what is to be known of them."""
        groups, log = self.groups(), self.log
        names = [name for name in self.settings if name != SEED]
        kind = "geometric mean" if log else "mean"
        better = "higher" if self.higher else "lower"
        lines = [[*names, "runs", f"{self.by} ({kind}, 95 %; {better} is better)", "not done"]]
        for group in groups[:SHOWN]:
            lost = [status for status in group.statuses if status not in OVER]
            lines.append(
                [
                    *(_shown(group.setting[name]) for name in names),
                    str(len(group.statuses)),
                    _interval(group, log=log),
                    ", ".join(f"{lost.count(s)} {s}" for s in dict.fromkeys(lost)),
                ]
            )
        notes = [f"… and {len(groups) - SHOWN} more settings"] if len(groups) > SHOWN else []
        notes += ["(interrupted: runs are missing)"] if self.interrupted else []
        return lines, notes

    def __repr__(self) -> str:
        return f"Sweep({counted(len(self), 'row')} by {self.by}; print it for the table)"

    def _value(self, row: Row) -> float | None:
        value = row.get(self.by) if row["status"] in OVER else None
        return None if value is None or not math.isfinite(value) else float(value)


_NONE = Group({}, (), (None,), ())  # no run at all


def _costs(group: Group, seeds: list[Any], *, higher: bool) -> list[float | None]:
    of_seed = dict(zip(group.seeds, group.values, strict=True))
    values = [of_seed[seed] for seed in seeds]
    return [None if v is None else -v for v in values] if higher else values


def _plain(group: Group, *, log: bool) -> dict[str, Any]:
    mean = group.mean(log=log)
    return {
        "setting": {
            name: value if isinstance(value, str | bool | int | float) else _shown(value)
            for name, value in group.setting.items()
        },
        "values": list(group.values),
        "statuses": list(group.statuses),
        "mean": None if mean is None else mean.center,
        "interval": _interval(group, log=log),
    }


def _interval(group: Group, *, log: bool) -> str:
    mean = group.mean(log=log)
    if mean is None:
        known = sum(value is not None for value in group.values)
        return f"{known} of {len(group.values)} runs have one"
    text = f"{mean.center:.4g}"
    if mean.low is None or mean.high is None:
        return text
    return f"{text} ({mean.low:.4g} to {mean.high:.4g})"


def _listed(names: list[str]) -> str:
    """Names in a sentence, at most three of them."""
    if len(names) > 3:
        return ", ".join(names[:3]) + f" and {len(names) - 3} more"
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
