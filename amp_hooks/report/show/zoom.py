"""Which iterations of a run are worth enlarging."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..judge.incidents import Incidents

AROUND = 50  # iterations before and after an incident
_LONGEST = 300  # of an incident; more would be the whole run again
_MOST = 4


@dataclass(frozen=True)
class Window:
    """Iterations that a plot shows.

    Attributes:
        first: First iteration shown.
        last: Last one shown.
        whole: They are all of the run.
    """

    first: int
    last: int
    whole: bool = False


def windows(found: Incidents) -> list[Window]:
    """One for each incident, those that are close to each other in one.

    Of many: the first ones, where it began, and the last one, where it led.
    """
    merged: list[tuple[int, int]] = []
    for begins, ends in sorted(_incidents(found)):
        if merged and begins - merged[-1][1] <= AROUND:
            merged[-1] = merged[-1][0], max(ends, merged[-1][1])
        else:
            merged.append((begins, ends))
    if len(merged) > _MOST:
        merged = [*merged[: _MOST - 1], merged[-1]]
    return [_window(found, *pair) for pair in merged]


def _incidents(found: Incidents) -> Iterator[tuple[int, int]]:
    yield from found.streaks
    for divergence in found.divergences:
        until = divergence.until
        yield divergence.since, divergence.told if until is None else until
    for iteration in [*found.poisoned, *found.collapses]:
        yield int(iteration), int(iteration)


def _window(found: Incidents, begins: int, ends: int) -> Window:
    # What never ended is looked at where it began.
    longest = AROUND if ends >= found.last else _LONGEST
    ends = min(ends, begins + longest)
    return Window(max(found.first, begins - AROUND), min(found.last, ends + AROUND))
