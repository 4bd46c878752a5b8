"""The report as text for a terminal, or for a file."""

from __future__ import annotations

import io
import os
import re
import shutil
import sys
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ...engine.words import count
from ..judge.status import Status
from .code_lines import broken
from .health import Quantity
from .page import NO_LEDGER, OF_THE_TABLE, Page
from .spark import ASCII_BARS, BARS, NOT_FINITE, spark

WIDTH = 88  # where there is no window
_WIDEST, _NARROWEST = (
    120,
    40,
)  # longer lines are hard to read, shorter ones hold nothing
_LONGEST_SPARK = 48
_EVENTS = 40  # as many as fit on a screen or two; the HTML page has all
_COLOURS = {
    Status.HEALTHY: "bold green",
    Status.RECOVERED: "bold yellow",
    Status.LOST: "bold red",
}
_BAD = "bold red"
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")
# Columns that a narrow window does without, the first one first.
_LEAVE_OUT = ("lr", "grad norm", "overflows", "|cls_score|", "health", "rollbacks")
_BREAKS = {
    "grad norm": "grad\nnorm",
    "not finite": "not\nfinite",
    "overflows": "over-\nflows",
    "rollbacks": "roll-\nbacks",
}
_GAP = 2  # between columns


def window() -> tuple[int, bool]:
    """The width of the standard output, and whether it takes colours.

    What is no terminal gets neither codes nor a width that another place would not
    have: 88, or what ``COLUMNS`` says.
    """
    if sys.stdout.isatty():
        dumb = os.environ.get("TERM") in ("dumb", "unknown")
        colour = not (dumb or os.environ.get("NO_COLOR"))
        return shutil.get_terminal_size((WIDTH, 24)).columns, colour
    given = os.environ.get("COLUMNS", "")
    return int(given) if given.isdecimal() and int(given) else WIDTH, False


def fit(text: str, encoding: str) -> str:
    """Text that an output of that encoding can take."""
    plain = text if _can(encoding, "±") else text.replace("±", "+-")
    return plain.encode(encoding, "replace").decode(encoding)


def _can(encoding: str, text: str) -> bool:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def render(
    page: Page, encoding: str = "utf-8", colour: bool = False, width: int = WIDTH
) -> str:
    """The whole page.

    Args:
        page: Its content.
        encoding: Of the output; without block characters, sparklines are ASCII.
        colour: Use ANSI codes.
        width: Columns of the window. No line is longer, but for a setting to paste
            that has no place to break it.
    """
    out = io.StringIO()
    console = Console(
        file=out,
        width=min(max(width, _NARROWEST), _WIDEST),
        force_terminal=colour,
        force_jupyter=False,
        color_system="standard" if colour else None,
        no_color=not colour,
        legacy_windows=False,
        highlight=False,
        markup=False,  # a path may have brackets
        emoji=False,  # and colons
    )
    bars = BARS if _can(encoding, BARS) else ASCII_BARS
    word, rest = page.sentence.split(":", 1)
    console.print(Text(f"{word}:", _COLOURS[page.judged.status]) + _text(rest))
    if page.checkpoint:  # on a line of its own, to be copied
        console.print("Last good checkpoint:")
        console.print(_text(page.checkpoint), soft_wrap=True)
    _title(console, "What was active")
    console.print(_labelled(page.active))
    _title(console, "Health over time")
    console.print(OF_THE_TABLE)
    _health(console, page)
    _sparks(console, page, bars)
    _title(console, "Events")
    _events(console, page)
    _title(console, "Likely causes")
    console.print(_labelled(page.causes))
    _title(console, "Advice")
    _advice(console, page)
    lines = (line.rstrip() for line in out.getvalue().splitlines())
    return fit("\n".join(lines) + "\n", encoding)


def _text(text: str, style: str = "") -> Text:
    """What the run's files say, which may hold codes that a terminal obeys."""
    return Text(_CONTROL.sub("?", text), style)


def _title(console: Console, text: str) -> None:
    console.print()
    console.print(Text(text, "bold"))
    if console.color_system is None:
        console.print("-" * min(len(text), console.width))


def _labelled(rows: Iterable[tuple[str, str]]) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    before = None
    for label, text in rows:
        table.add_row(Text("" if label == before else label, "bold"), _text(text))
        before = label
    return table


def _hanging(console: Console, text: Text, indent: int, further: int) -> None:
    """A paragraph whose lines after the first one stand ``further`` in."""
    lines = text.wrap(console, console.width - indent - further, overflow="fold")
    for i, line in enumerate(lines):
        console.print(Text(" " * (indent + further * (i > 0))) + line)


def _health(console: Console, page: Page) -> None:
    head, *rows = page.table()
    sizes = [
        max(map(len, [*_broken(title).split("\n"), *cells]))
        for title, *cells in zip(head, *rows)
    ]
    shown = _columns(head, sizes, console.width)
    table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False)
    for i in shown:
        table.add_column(_broken(head[i]), justify="right", width=sizes[i])
    for row, bad in zip(rows, page.bad_cells()):
        table.add_row(*(Text(row[i], _BAD if bad[i] else "") for i in shown))
    console.print(table)
    if left_out := [head[i] for i in range(len(head)) if i not in shown]:
        text = f"(a wider window, or --html, has {', '.join(left_out)} as well)"
        console.print(Text(text, "dim"))


def _columns(head: list[str], sizes: list[int], width: int) -> list[int]:
    """The columns that fit."""
    shown = list(range(len(head)))
    for name in _LEAVE_OUT:
        if sum(sizes[i] + _GAP for i in shown) - _GAP <= width:
            break
        if name in head:
            shown.remove(head.index(name))
    return shown


def _broken(title: str) -> str:
    return _BREAKS.get(title, title)


def _sparks(console: Console, page: Page, bars: str) -> None:
    shown = [q for q in (page.metric, *page.shown) if q is not None]
    if not shown:
        return
    wide = console.width >= WIDTH
    titles = [q.title if wide else q.short for q in shown]
    spans = [_span(q) for q in shown]
    used = max(map(len, titles)) + max(map(len, spans)) + 2 * _GAP
    room = max(min(console.width - used, _LONGEST_SPARK), 8)
    table = Table.grid(padding=(0, _GAP, 0, 0))
    for column in (dict(overflow="fold"), dict(no_wrap=True), dict(overflow="fold")):
        table.add_column(**column)
    for q, title, span in zip(shown, titles, spans):
        line = Text(spark(q, bars, room))
        line.highlight_regex(f"{NOT_FINITE}+", _BAD)
        table.add_row(_text(title), line, Text(span))
    console.print()
    console.print(table)


def _span(quantity: Quantity) -> str:
    values = quantity.curve.finite.values
    if not len(values):
        return "nan"
    ends = [quantity.text(v) for v in (values.min(), values.max())]
    return " to ".join(dict.fromkeys(ends))


def _events(console: Console, page: Page) -> None:
    if not page.groups:
        console.print(NO_LEDGER)
        return
    half = _EVENTS // 2
    groups = page.groups
    hidden = len(groups) - _EVENTS
    for i, group in enumerate(groups):
        if hidden > 0 and i == half:
            more = count(hidden, "more event")
            console.print(f"... {more}; --html shows them ...")
        if hidden <= 0 or i < half or i >= len(groups) - half:
            style = "dim" if group.lost else ""
            _hanging(console, _text(f"{group.where}: {group.text}", style), 0, 4)


def _advice(console: Console, page: Page) -> None:
    if not page.advice:
        console.print(page.no_advice)
    for i, advice in enumerate(page.advice, 1):
        _hanging(console, _text(f"{i}. {advice.title}", "bold"), 0, 3)
        for line in broken(advice.change, console.width - 7):
            console.print(_text(f"       {line}", "cyan"), soft_wrap=True)
        for text in advice.evidence:
            _hanging(console, _text(f"- {text}"), 3, 2)
        for text in advice.remarks:
            _hanging(console, _text(f"(remark: {text})", "dim"), 3, 2)
