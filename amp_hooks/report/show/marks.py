"""Events of a run as labelled marks of its plots."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..judge.incidents import Incidents
from ..read.history import RunHistory

# Okabe and Ito's colours, which colour-blind readers can tell apart; each event has a
# word and a line style of its own as well. The most telling first.
STYLES: dict[str, tuple[str, str, str]] = {
    "rollback": ("rollback", "#D55E00", "-"),
    "diverged": ("diverged", "#CC79A7", "-"),
    "abort": ("ended", "#D55E00", "--"),
    "not_finite": ("not finite", "#D55E00", ":"),
    "resumed": ("resumed", "#606162", "--"),
    "fallback": ("precision", "#CC79A7", "-."),
    "clamp_on": ("clamp on", "#009E73", "--"),
    "clamp_off": ("clamp off", "#009E73", ":"),
    "watch": ("watched", "#E69F00", "-."),
    "well": ("well again", "#E69F00", "--"),
    "early_warning": ("early warning", "#E69F00", ":"),
}
_MOST = 50  # of one kind; more would be a wall


@dataclass(frozen=True)
class Mark:
    """One event.

    Attributes:
        iter: Its iteration.
        event: A key of :data:`STYLES`.
    """

    iter: int
    event: str

    @property
    def label(self) -> str:
        """``rollback 16``."""
        return f"{STYLES[self.event][0]} {self.iter}"


def marks(run: RunHistory, found: Incidents) -> list[Mark]:
    """The marks of a run, the most telling first; a kill took those of others back."""
    places = {e: [h.iter for h in run.having(e, lost=False)] for e in STYLES}
    places["resumed"] = [start.begins for start in run.starts[1:]]
    places["not_finite"] = [first for first, _ in found.streaks]
    return [
        Mark(iteration, event)
        for event in STYLES
        for iteration in sorted(set(places[event]))[:_MOST]
    ]


@dataclass(frozen=True)
class Label:
    """Where the label of a mark stands.

    Attributes:
        mark: Which one.
        row: From 0, the one next to the plots.
        x: Where its text is anchored, in points from the left.
        mark_x: Where the mark itself is.
        right: The text ends there, and does not begin.
    """

    mark: Mark
    row: int
    x: float
    mark_x: float
    right: bool


def placed(
    shown: Iterable[tuple[Mark, float]], width: float, size: float, rows: int
) -> list[Label]:
    """Put labels into rows so that none covers another.

    Args:
        shown: Marks, the most telling first, each with its place in points.
        width: Of the plot, in points.
        size: Of the font, in points.
        rows: As many there may be; a mark without room has a line and no label.
    """
    taken: list[list[tuple[float, float]]] = [[] for _ in range(rows)]
    out = []
    for mark, x in shown:
        long = 0.56 * size * (len(mark.label) + 1)
        right = x + long > width
        begin, end = (x - long, x) if right else (x, x + long)
        for row, others in enumerate(taken):
            if all(end < a or b < begin for a, b in others):
                others.append((begin, end))
                out.append(Label(mark, row, x - 3 if right else x + 3, x, right))
                break
    return out
