"""The sentence that says when to use which form, as far as the seeds of a comparison support it.

A comparison is what ``compare.json`` holds, in plain values; nothing else is looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from gdtrain.output.report.table import (
    bytes_text,
    descended,
    metric_text,
    number_text,
    seconds_text,
)
from gdtrain.wording import counted

FEWEST_SEEDS = 5  # from which on a form may be recommended

Form = dict[str, Any]


def when_to_use(result: dict[str, Any]) -> str:
    """What to use for which purpose, or that these runs do not tell.

    From five seeds on, a form is recommended that is better than every other by the pairs'
    corrected tests. Of fewer, it is said what was seen, and no more. Forms that end above their
    start are no choice; what failed is named after the others.
    """
    forms = result["forms"]
    sound = [form for form in forms if form["status"] != "diverged" and descended(form)]
    parts = [*_praise(result, sound), *_failures(forms, sound)]
    if not parts and len(forms) == 1:
        return "Only one form was run, so there is nothing to compare."
    note = result["target"].get("note")
    if note is not None and len(sound) > 1:
        parts.append(f"{'the target' if result['target']['given'] else 'for speed'}, {note}")
    text = "; ".join(parts) or "these runs do not tell the forms apart"
    return f"{text[:1].upper()}{text[1:]}."


def _praise(result: dict[str, Any], sound: list[Form]) -> list[str]:
    if len(sound) == 1 and len(result["forms"]) > 1:
        return [f"on this problem, with these settings, only {sound[0]['name']} reduced the loss"]
    if len(sound) < 2:
        return []
    statistics = result.get("statistics")
    if statistics is not None and len(statistics["seeds"]) >= FEWEST_SEEDS:
        return _supported(result, [form["name"] for form in sound])
    return _seen(result, sound)


def _failures(forms: list[Form], sound: list[Form]) -> list[str]:
    failed = [form["name"] for form in forms if form["status"] == "diverged"]
    stuck = [form["name"] for form in forms if form not in sound and form["name"] not in failed]
    parts = []
    if failed:
        parts.append(
            f"{_listed(failed)} diverged: give {'them' if len(failed) > 1 else 'it'} a smaller "
            "learning rate"
        )
    if stuck:
        parts.append(
            f"{_listed(stuck)} ended above {'their' if len(stuck) > 1 else 'its'} initial loss"
        )
    for form in sound:
        rows = form.get("runs", [])
        lost = sum(run["status"] == "diverged" for run in rows)
        if lost:
            parts.append(f"{form['name']} diverged with {lost} of {len(rows)} seeds")
    return parts


# ── one run of each, or a few ───────────────────────────────────────────────────────────────


def _seen(result: dict[str, Any], sound: list[Form]) -> list[str]:
    """What was best in the runs at hand, with all that read alike, and why that is not enough."""
    reasons = _reasons(sound, result["target"])
    clauses = [f"{_listed(list(names))} for {_listed(whys)}" for names, whys in _by_names(reasons)]
    if not clauses:
        return []
    seeds = len(result["statistics"]["seeds"]) if "statistics" in result else 1
    which = "one run of each, the best was" if seeds == 1 else "the first of the runs, the best was"
    enough = f"with {counted(seeds, 'seed')} this is not conclusive, use at least {FEWEST_SEEDS}"
    return [f"in {which} {'; '.join(clauses)}; {enough}"]


def _reasons(sound: list[Form], target: dict[str, Any]) -> list[tuple[tuple[str, ...], str]]:
    """(names of the best forms, why), for each purpose whose best is not shared by all."""
    loss = target["full_loss"]
    timed = [] if "note" in target else [form for form in sound if form["to_target"]]
    found = [
        _best(
            timed,
            lambda f: f["to_target"]["seconds"],
            seconds_text,
            lambda best, other: f"speed (a full loss of {loss:.3g} after {best}, {other})",
        ),
        _best(
            sound,
            lambda f: f["final"]["full_loss"],
            number_text,
            lambda best, other: f"the lowest final loss ({best}, {other})",
        ),
        _best(
            [form for form in sound if form["memory"]],
            lambda f: f["memory"]["step_peak_bytes"],
            bytes_text,
            lambda best, other: f"the least memory ({best} a step, {other})",
        ),
        _best(
            [form for form in sound if form["stability"]["share_that_raised"] is not None],
            lambda f: f["stability"]["share_that_raised"],
            lambda share: f"{share:.0%}",
            lambda best, other: (
                f"the steadiest descent ({best} of the updates raised the full loss, {other})"
            ),
        ),
    ]
    return [reason for reason in found if reason is not None]


def _best(
    forms: list[Form],
    value: Callable[[Form], Any],
    write: Callable[[Any], str],
    why: Callable[[str, str], str],
) -> tuple[tuple[str, ...], str] | None:
    """All the forms that read as well as the best one; None where all do."""
    order = sorted(forms, key=value)
    if len(order) < 2:
        return None
    texts = [write(value(form)) for form in order]
    names = tuple(f["name"] for f, text in zip(order, texts, strict=True) if text == texts[0])
    if len(names) == len(order):
        return None
    return names, why(texts[0], f"{order[-1]['name']} {texts[-1]}")


def _by_names(
    reasons: list[tuple[tuple[str, ...], str]],
) -> list[tuple[tuple[str, ...], list[str]]]:
    """The reasons of those that have some, in the order of the reasons."""
    names = dict.fromkeys(name for name, _ in reasons)
    return [(name, [why for other, why in reasons if other == name]) for name in names]


# ── several seeds ───────────────────────────────────────────────────────────────────────────


def _supported(result: dict[str, Any], names: list[str]) -> list[str]:
    """Of each measure the form that the seeds support, or that they support none."""
    measures = result["statistics"]["measures"]
    wins: list[tuple[tuple[str, ...], str]] = []
    open_: list[str] = []
    for name, measure in measures.items():
        if name == "seconds_to_target" and "note" in result["target"]:
            continue
        pairs = [p for p in measure["pairs"] if p["first"] in names and p["second"] in names]
        lead = _lead(measure, names)
        if lead is None or not pairs:
            continue
        rivals = [_against(pair, lead) for pair in pairs if lead in (pair["first"], pair["second"])]
        untold = [pair for pair in rivals if not pair["told"]]
        if len(rivals) == len(names) - 1 and not untold:
            wins.append(((lead,), _why(result, name, measure, lead, rivals)))
        elif untold:
            open_.append(_untold(_PURPOSES.get(name, f"the {_metric(name)}"), lead, untold))
    memory = _best(
        [f for f in result["forms"] if f["name"] in names and f["memory"]],
        lambda f: f["memory"]["step_peak_bytes"],
        bytes_text,
        lambda best, other: f"the least memory ({best} a step, {other})",
    )
    wins += [] if memory is None else [memory]
    uses = [f"{_listed(list(who))} for {_listed(whys)}" for who, whys in _by_names(wins)]
    return [*([f"on this problem use {'; '.join(uses)}"] if uses else []), *open_]


_PURPOSES = {
    "seconds_to_target": "speed",
    "full_loss": "the final loss",
    "share_that_raised": "steadiness",
}


def _metric(name: str) -> str:
    return f"validation {name.removeprefix('val_')}"


def _lead(measure: dict[str, Any], names: list[str]) -> str | None:
    """The form of the best mean, or of those that have none of the most known runs."""
    sign = -1 if measure["better"] == "higher" else 1

    def rank(name: str) -> tuple[int, float]:
        own = measure["forms"][name]
        center = own.get("mean", own["median"])
        return -own["known"], float("inf") if center is None else sign * center

    lead = min(names, key=rank)
    return lead if measure["forms"][lead]["known"] else None


def _against(pair: dict[str, Any], lead: str) -> dict[str, Any]:
    """A pair as seen from the lead: the other one's ratio to it, or its difference from it."""
    if pair["first"] == lead:
        return {**pair, "other": pair["second"]}
    turned: dict[str, Any] = {**pair, "other": pair["first"]}
    if pair.get("ratio") is not None:
        ends = [1 / pair[key] for key in ("ratio", "high", "low")]
        return turned | dict(zip(("ratio", "low", "high"), ends, strict=True))
    if pair.get("difference") is not None:
        ends = [-pair[key] for key in ("difference", "high", "low")]
        return turned | dict(zip(("difference", "low", "high"), ends, strict=True))
    return turned


def _why(
    result: dict[str, Any],
    name: str,
    measure: dict[str, Any],
    lead: str,
    rivals: list[dict[str, Any]],
) -> str:
    """What it is best at, by how much, against the one that comes next."""
    own = measure["forms"][lead]
    nearest = min(rivals, key=lambda pair: abs(_size(pair)))
    center = own.get("mean", own["median"])
    loss = result["target"]["full_loss"]
    purposes: dict[str, tuple[str, Callable[[float], str]]] = {
        "seconds_to_target": (f"speed (a full loss of {loss or 0:.3g} after ", seconds_text),
        "full_loss": ("the lowest final loss (", number_text),
        "share_that_raised": ("the steadiest descent (raised by ", lambda share: f"{share:.0%}"),
    }
    word = "highest" if measure["better"] == "higher" else "lowest"
    text, write = purposes.get(name, (f"the {word} {_metric(name)} (", partial(metric_text, name)))
    shown = "half of the runs never" if center is None else write(center)
    return f"{text}{shown}; {_margin(nearest)})"


def _size(pair: dict[str, Any]) -> float:
    if pair.get("ratio") is not None:
        return float(pair["ratio"]) - 1
    return float(pair["difference"]) if pair.get("difference") is not None else float("inf")


def _margin(pair: dict[str, Any]) -> str:
    other = pair["other"]
    if pair.get("ratio") is not None:
        return f"{other} {pair['ratio']:.3g} times that, {pair['low']:.3g} to {pair['high']:.3g}"
    if pair.get("difference") is not None:
        ends = f"{pair['low']:+.3g} to {pair['high']:+.3g}"
        return f"{other} {pair['difference']:+.3g}, {ends}"
    return f"{other} with fewer seeds"


def _untold(purpose: str, lead: str, pairs: list[dict[str, Any]]) -> str:
    needed = [pair["more_seeds"] for pair in pairs]
    more = "more than a thousand more would be needed"
    if all(number is not None for number in needed):
        more = f"about {max(needed):,} more might"
    others = _listed([pair["other"] for pair in pairs])
    return f"these seeds do not distinguish {lead} from {others} in {purpose} ({more})"


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
