"""The terms of a loss: those that come and go, and the one that rose."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .evidence import Evidence
from .level import Level, height
from .thresholds import CLIP, PATIENCE, RANGE_LIMIT, TERM_RANGE, WINDOW

SETTLED = 30  # values in a row that make a new term part of the total
GAP = 5  # zeros in a row that are no batch without objects
GONE = 20  # zeros in a row after which a term that comes back is new
JUDGED = 20  # values that give a term's level
NEW_MOST = 3.0  # times the total's level: more of a new term is not left out

MOST = 100  # terms that are followed


class _Term:
    """One term: its level, whether it is part of the total, its evidence."""

    def __init__(self, part: bool) -> None:
        self.level = Level(WINDOW)
        self.evidence = Evidence()
        self.part = part
        self.ever = part
        self.value = 0.0
        self.zeros = 0
        self.values = 0
        self.away = 0  # zeros in a row, the last time

    def add(self, value: float) -> tuple[float, bool]:
        """Take in a value.

        Returns:
            Its level if it has just become part and the total's past has none of it,
            and whether it never was part before.
        """
        self.value = value
        if value == 0:
            self.zeros += 1
            if self.zeros >= GAP:
                self.values = 0
            if self.zeros == GONE:
                self.part = False
                self.level.clear()
            self.away = self.zeros
            return 0.0, False
        self.zeros = 0
        self.values += 1
        if self.part or self.values < SETTLED:
            return 0.0, False
        self.part = True
        first, self.ever = not self.ever, True
        # One that was away for a little while still is in the middle of the past.
        return (self.level.median if first or self.away > WINDOW / 2 else 0.0), first

    def state(self) -> dict[str, Any]:
        return dict(
            level=self.level.state(),
            evidence=self.evidence.state(),
            flags=[int(self.part), int(self.ever)],
            counts=[self.value, self.zeros, self.values, self.away],
        )

    def load_state(self, state: dict[str, Any]) -> None:
        self.level.load_state(state["level"])
        self.evidence.load_state(state["evidence"])
        self.part, self.ever = (bool(flag) for flag in state["flags"])
        self.value, self.zeros, self.values, self.away = state["counts"]


class Terms:
    """Judges each term, more leniently than the total, and knows which are new."""

    def __init__(self) -> None:
        self._terms: dict[str, _Term] = {}

    def add(
        self, terms: Mapping[str, float], total: float | None
    ) -> tuple[float, float, bool]:
        """Take in the terms of an iteration.

        Args:
            terms: Name to value.
            total: Level of the total, or None while it has none: then all are part.

        Returns:
            What to leave out of the total because it is new; by how much the total's
            past is to be raised because something new has settled; and whether its
            start is as well, because it is new for the first time.
        """
        left_out = shift = 0.0
        is_new = False
        for name, value in terms.items():
            if not math.isfinite(value):
                continue
            term = self._terms.get(name)
            if term is None:
                if len(self._terms) >= MOST:
                    continue  # names with a number of the iteration in them, say
                term = self._terms[name] = _Term(part=total is None and value != 0)
            if total is None:
                term.part = term.ever = term.part or value != 0
            joined, first = term.add(value)
            shift += joined
            is_new = is_new or first
            if not term.part and value != 0:
                most = math.inf if total is None else NEW_MOST * abs(total)
                left_out += max(0.0, min(value, most))
                term.level.add(value)  # must be learned, whatever the total says
        for name, term in self._terms.items():
            if name not in terms:
                term.add(0.0)
        return left_out, shift, is_new

    def judge(
        self, iteration: int, small: float, patience: float, healthy: bool
    ) -> None:
        """Weigh the values that were just added; learn them if all is healthy."""
        for term in self._terms.values():
            if not term.part or term.zeros:
                continue
            if len(term.level) >= JUDGED:
                level = height(term.level.median, small)
                spread = min(2 * term.level.spread(small, level), RANGE_LIMIT)
                excess = height(term.value, small) - level - TERM_RANGE - spread
                term.evidence.add(iteration, excess, CLIP, patience * PATIENCE)
            if healthy and term.evidence.since is None:
                term.level.add(term.value)

    @property
    def worst(self) -> tuple[str, Evidence] | None:
        """The term that most speaks against, if any does."""
        worst = None
        for name, term in self._terms.items():
            if term.evidence.value > (worst[1].value if worst else 0.0):
                worst = name, term.evidence
        return worst

    def rose_most(self, small: float) -> tuple[str, float] | None:
        """The term that rose most above its level, and by what factor."""
        if len(self._terms) < 2:
            return None
        rise = {
            name: height(term.value, small) - height(term.level.median, small)
            for name, term in self._terms.items()
            if len(term.level) >= JUDGED
        }
        name = max(rise, key=lambda n: rise[n], default=None)
        return None if name is None else (name, math.exp(rise[name]))

    def value_of(self, name: str) -> tuple[float, float]:
        """A term's value and its level."""
        term = self._terms[name]
        return term.value, term.level.median if len(term.level) else 0.0

    def clear(self, past: bool = False) -> None:
        """Drop the evidence, and what was learned as well if ``past``."""
        for term in self._terms.values():
            term.evidence.clear()
            if past:
                term.level.clear()

    def state(self) -> dict[str, Any]:
        """As plain numbers, lists and strings."""
        return {name: term.state() for name, term in self._terms.items()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state` gave."""
        self._terms = {name: _Term(part=False) for name in state}
        for name, term in self._terms.items():
            term.load_state(state[name])
