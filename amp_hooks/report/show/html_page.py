"""The report as one HTML file that needs nothing else, and no network."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from ...engine.events import in_words
from ...engine.words import count
from ..judge.status import Status
from .groups import Group
from .page import NO_LEDGER, Page
from .plots import draw

# An event is one row, with its lines folded into it. What a run of days writes must
# still open in a browser; stability.jsonl has the rest.
_MOST_GROUPS, _MOST_LINES = 2000, 100

_COLOURS = {
    Status.HEALTHY: "#006644",
    Status.RECOVERED: "#8a5a00",
    Status.LOST: "#a61b00",
}

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1a1a1a; background: #fff;
       max-width: 68rem; margin: 1.5rem auto; padding: 0 1rem; }
h1 { font-size: 1.3rem; margin: 0 0 .6rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 1.8rem 0 .5rem; border-bottom: 1px solid #ccc; }
table { border-collapse: collapse; }
th, td { padding: .15rem .6rem; text-align: left; vertical-align: top; }
th { font-weight: 600; white-space: nowrap; }
.numbers { font-size: .85rem; }
.numbers td, .numbers th { text-align: right; font-variant-numeric: tabular-nums; }
.numbers tr:nth-child(even), .events tr:nth-child(even) { background: #f5f5f5; }
.scroll { overflow-x: auto; }
.bad { color: #a61b00; font-weight: 600; }
.verdict { border-left: .5rem solid var(--status); padding: .5rem .9rem;
           background: #f7f7f7; overflow-wrap: anywhere; }
.verdict b { color: var(--status); font-size: 1.15rem; }
td { overflow-wrap: anywhere; }
.numbers td { overflow-wrap: normal; white-space: nowrap; }
.events td:first-child { white-space: nowrap; }
.lost { color: #666; }
pre { background: #f3f3f3; padding: .5rem .7rem; overflow-x: auto; margin: .3rem 0; }
svg { width: 100%; height: auto; }
li > b { display: block; }
ol > li { margin-bottom: .9rem; }
"""


def render(page: Page) -> str:
    """The whole file."""
    word, rest = page.sentence.split(":", 1)
    title = escape(f"Stability of {page.run.work_dir}")
    colour = _COLOURS[page.judged.status]
    return (
        "\n".join(
            [
                "<!DOCTYPE html>",
                '<html lang="en"><head><meta charset="utf-8">',
                '<meta name="viewport" content="width=device-width, initial-scale=1">',
                f"<title>{title}</title><style>{_STYLE}</style></head><body>",
                f"<h1>{title}</h1>",
                f'<p class="verdict" style="--status: {colour}"><b>{escape(word)}:</b>'
                f"{escape(rest)}</p>",
                "<h2>What was active</h2>",
                _labelled(page.active),
                "<h2>Health over time</h2>",
                "<p>Iterations count from 0. The table shows the worst of each stretch "
                "(of the loss, the mean).</p>",
                _health(page),
                '<div role="img" aria-label="Plots of the table above">',
                draw(page),
                "</div>",
                "<h2>Events</h2>",
                _events(page.groups),
                "<h2>Suspects</h2>",
                _labelled(page.causes),
                "<h2>Advice</h2>",
                _advice(page),
                "</body></html>",
                "",
            ]
        )
        .encode("utf-8", "replace")
        .decode("utf-8")
    )


def _labelled(rows: Iterable[tuple[str, str]]) -> str:
    out, before = ["<table>"], None
    for label, text in rows:
        shown = "" if label == before else escape(label)
        out.append(f"<tr><th>{shown}</th><td>{escape(text)}</td></tr>")
        before = label
    return "".join([*out, "</table>"])


def _health(page: Page) -> str:
    head, *rows = page.table()
    cells = "".join(f"<th>{escape(c)}</th>" for c in head)
    out = [f'<div class="scroll"><table class="numbers"><tr>{cells}</tr>']
    for row, stretch in zip(rows, page.health):
        is_bad = stretch.bad != "0" or bool(stretch.rollbacks) or stretch.ill
        bad = ' class="bad"' * is_bad
        cells = "".join(f"<td>{escape(c)}</td>" for c in row)
        out.append(f"<tr{bad}>{cells}</tr>")
    return "".join([*out, "</table></div>"])


def _events(groups: list[Group]) -> str:
    if not groups:
        return f"<p>{escape(NO_LEDGER)}</p>"
    half = _MOST_GROUPS // 2
    shown = groups if len(groups) <= _MOST_GROUPS else groups[:half] + groups[-half:]
    rows = [_event(g) for g in shown]
    if hidden := len(groups) - len(shown):
        text = f"{count(hidden, 'more event')} in stability.jsonl"
        rows.insert(half, f"<tr><td></td><td>{text}</td></tr>")
    return f'<table class="events">{"".join(rows)}</table>'


def _event(group: Group) -> str:
    lost = ' class="lost"' * group.lost
    text = escape(group.text)
    if len(group.happenings) > 1:
        lines = [
            f"<li>iteration {h.iter}: {escape(in_words(h.line))}</li>"
            for h in group.happenings[:_MOST_LINES]
        ]
        if more := len(group.happenings) - _MOST_LINES:
            lines += [f"<li>{more} more lines in stability.jsonl</li>"] * (more > 0)
        text = f"<details><summary>{text}</summary><ul>{''.join(lines)}</ul></details>"
    return f"<tr{lost}><td>{escape(group.where)}</td><td>{text}</td></tr>"


def _advice(page: Page) -> str:
    if not page.advice:
        return f"<p>{page.no_advice}</p>"
    items = []
    for advice in page.advice:
        remarks = [f"(remark: {x})" for x in advice.remarks]
        told = [*advice.evidence, *remarks]
        evidence = "".join(f"<li>{escape(x)}</li>" for x in told)
        change = f"<pre>{escape(advice.change)}</pre>" * bool(advice.change)
        items.append(
            f"<li><b>{escape(advice.title)}</b>{change}<ul>{evidence}</ul></li>"
        )
    return f"<ol>{''.join(items)}</ol>"
