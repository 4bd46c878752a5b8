"""The report as text for a terminal."""

from __future__ import annotations

import textwrap

import numpy as np

from ...engine.words import count
from ..judge.status import Status
from .health import Quantity
from .page import NO_LEDGER, Page

_WIDTH = 88
_SPARK = 32
_EVENTS = 40  # as many as fit on a screen or two; the HTML page has all
_BOLD, _RESET = "\033[1m", "\033[0m"
_COLOURS = {
    Status.HEALTHY: "\033[32m",
    Status.RECOVERED: "\033[33m",
    Status.LOST: "\033[31m",
}
_BARS, _ASCII_BARS = "▁▂▃▄▅▆▇█", "_.-=+*%#"


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


def render(page: Page, encoding: str = "utf-8", colour: bool = False) -> str:
    """The whole page.

    Args:
        page: Its content.
        encoding: Of the output; without block characters, sparklines are ASCII.
        colour: Use ANSI codes.
    """
    bars = _BARS if _can(encoding, _BARS) else _ASCII_BARS

    def title(text: str) -> str:
        return f"\n{_BOLD}{text}{_RESET}" if colour else f"\n{text}\n{'-' * len(text)}"

    verdict = _wrap(page.sentence)
    if colour:
        word, rest = verdict.split(":", 1)
        verdict = f"{_BOLD}{_COLOURS[page.judged.status]}{word}{_RESET}:{rest}"
    parts = [
        verdict,
        title("What was active"),
        *_labelled(page.active),
        title("Health over time (iterations count from 0; the worst of each stretch)"),
        *_health(page, bars),
        title("Events"),
        *_events(page),
        title("Suspects"),
        *_labelled(page.causes),
        title("Advice"),
        *_advice(page),
    ]
    return fit("\n".join(parts) + "\n", encoding)


def _wrap(text: str, indent: str = "", hanging: str | None = None) -> str:
    return textwrap.fill(
        text,
        _WIDTH,
        initial_indent=indent,
        subsequent_indent=indent if hanging is None else hanging,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _labelled(rows: list[tuple[str, str]]) -> list[str]:
    width = max((len(label) for label, _ in rows), default=0) + 2
    out, before = [], None
    for label, text in rows:
        shown = "" if label == before else label
        out.append(_wrap(text, shown.ljust(width), " " * width))
        before = label
    return out


def _health(page: Page, bars: str) -> list[str]:
    rows = page.table()
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(c.rjust(w) for c, w in zip(row, widths)) for row in rows]
    label = max((len(q.title) for q in page.shown), default=0)
    lines += [""] * bool(page.shown)
    for q in page.shown:
        finite = q.curve.finite.values
        span = f"{finite.min():.3g} to {finite.max():.3g}" if len(finite) else "nan"
        lines.append(f"{q.title.ljust(label)}  {spark(q, bars):{_SPARK}}  {span}")
    return lines


def spark(quantity: Quantity, bars: str, width: int = _SPARK) -> str:
    """A line of bars, one for the worst of each stretch; ``!`` where one has NaN."""
    curve = quantity.curve
    finite = curve.finite.values
    if not len(finite):
        return "!" * width
    cells = min(width, len(curve))
    edges = np.linspace(curve.iters[0], curve.iters[-1] + 1, cells + 1)

    def height(value: float) -> float:
        return float(np.log10(max(value, 1e-12))) if quantity.log else value

    low, high = height(finite.min()), height(finite.max())
    out = ""
    for first, end in zip(edges[:-1], edges[1:]):
        points = curve.within(first, end)
        values = points.finite.values
        if len(values) < len(points):
            out += "!"
        elif not len(values):
            out += " "
        else:
            share = (height(float(quantity.worst(values))) - low) / ((high - low) or 1)
            out += bars[min(int(share * len(bars)), len(bars) - 1)]
    return out


def _events(page: Page) -> list[str]:
    if not page.groups:
        return [NO_LEDGER]
    half = _EVENTS // 2
    groups = page.groups
    lines = [_wrap(f"{g.where}: {g.text}", "", "    ") for g in groups]
    if len(lines) <= _EVENTS:
        return lines
    hidden = f"... {count(len(lines) - 2 * half, 'more event')}; --html shows them ..."
    return [*lines[:half], hidden, *lines[-half:]]


def _advice(page: Page) -> list[str]:
    if not page.advice:
        return [page.no_advice]
    lines = []
    for i, advice in enumerate(page.advice, 1):
        lines.append(_wrap(f"{i}. {advice.title}", "", "   "))
        lines += [f"       {x}" for x in advice.change.splitlines()]
        lines += [_wrap(f"- {x}", "   ", "     ") for x in advice.evidence]
        lines += [_wrap(f"(remark: {x})", "   ", "     ") for x in advice.remarks]
    return lines
