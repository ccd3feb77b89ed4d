"""A sweep as one page, without a server: what its settings did, and what its seeds support."""

from __future__ import annotations

import re
from html import escape
from typing import Any

from gdtrain.output.report.page import callout, document
from gdtrain.output.report.sweep.figures import multiples, profiles
from gdtrain.output.report.sweep.heat_map import heat_map
from gdtrain.output.report.sweep.parallel_coordinates import coordinates
from gdtrain.output.report.sweep.values import shown
from gdtrain.wording import counted

MOST_ROWS = 200  # of the table


def page(result: dict[str, Any]) -> str:
    """The whole HTML document of what :meth:`Sweep.as_dict` gives.

    A picture is left out where it would say nothing: a heat map without batch sizes, say.
    """
    body = [
        _header(result),
        heat_map(result),
        multiples(result),
        coordinates(result),
        profiles(result),
        _table(result),
    ]
    return document(f"Sweep over {', '.join(result['settings'])}", [part for part in body if part])


def _header(result: dict[str, Any]) -> str:
    groups = result["groups"]
    runs = sum(len(group["statuses"]) for group in groups)
    facts = [
        counted(runs, "run"),
        counted(len(groups), "setting"),
        f"compared by {result['by']}, {'higher' if result['higher'] else 'lower'} is better",
    ]
    warning = ""
    if result["interrupted"]:
        warning = callout("Interrupted", "Runs are missing.", "warn")
    return (
        '<header><p class="eyebrow">A sweep over settings</p>'
        f'<h1 class="names">{escape(", ".join(result["settings"]))}</h1>'
        f'<p class="facts">{escape(" · ".join(facts))}</p></header>'
        f"{callout('What to use', result['sentence'], '')}{warning}"
    )


def _table(result: dict[str, Any]) -> str:
    kind = "geometric mean" if result["log"] else "mean"
    names = list(result["groups"][0]["setting"]) if result["groups"] else []
    heads = ["runs", f"{result['by']} ({kind}, 95 %)", "not done"]
    rows = "".join(f"<tr>{_row(group)}</tr>" for group in result["groups"][:MOST_ROWS])
    left = len(result["groups"]) - MOST_ROWS
    more = f"<p class='note'>… and {counted(left, 'more setting')}</p>" if left > 0 else ""
    return (
        '<h2>The table</h2><div class="scroll narrow"><table>'
        "<caption>The best first.</caption><thead><tr>"
        + "".join(f'<th scope="col" class="names">{_breakable(name)}</th>' for name in names)
        + "".join(f'<th scope="col">{escape(head)}</th>' for head in heads)
        + f"</tr></thead><tbody>{rows}</tbody></table></div>{more}"
    )


def _breakable(name: str) -> str:
    """A setting's name, which may go on in the next line after a dot or an underscore."""
    return re.sub(r"([._])", r"\1<wbr>", escape(name))


def _row(group: dict[str, Any]) -> str:
    lost = [status for status in group["statuses"] if status not in ("done", "stopped")]
    values = "".join(
        f'<td class="names">{escape(shown(value))}</td>' for value in group["setting"].values()
    )
    results = [
        str(len(group["statuses"])),
        group["interval"],
        ", ".join(f"{lost.count(status)} {status}" for status in dict.fromkeys(lost)),
    ]
    return values + "".join(f"<td>{escape(text)}</td>" for text in results)
