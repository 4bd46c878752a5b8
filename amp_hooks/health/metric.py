"""An evaluation's metric that has fallen to nothing."""

from __future__ import annotations

import math
from typing import Any

from .thresholds import METRIC_FALLEN, METRIC_LEAST


class Metrics:
    """Holds each metric against its best.

    Attributes:
        fallen: Evaluations in a row that say so, of the metric with the most.
        name: That metric.
        value: What it is now.
        best: What it was at best.
        since: Iteration after the last evaluation that was good.
    """

    def __init__(self) -> None:
        self.fallen = 0
        self.name = ""
        self.value = self.best = 0.0
        self.since: int | None = None
        self._best: dict[str, float] = {}
        self._fallen: dict[str, int] = {}
        self._good: dict[str, int] = {}
        self._in_vain: set[str] = set()  # fell, and went back for it

    def add(self, iteration: int, name: str, value: float, larger: bool) -> None:
        """Take in an evaluation; metrics of which less is better say nothing here."""
        if not larger or not math.isfinite(value):
            return
        best = max(self._best.get(name, value), value)
        self._best[name] = best
        if best < METRIC_LEAST or value > METRIC_FALLEN * best:
            self._fallen[name], self._good[name] = 0, iteration
            self._in_vain.discard(name)
        elif name not in self._in_vain:
            self._fallen[name] = self._fallen.get(name, 0) + 1
        fallen = self._fallen.get(name, 0)
        if fallen >= self.fallen or name == self.name:
            self.name, self.fallen = name, fallen
            self.value, self.best = value, best
            self.since = self._good.get(name, iteration) + 1

    def went_back(self, for_it: bool, anew: bool = False) -> None:
        """The best stays, what fell is gone.

        Args:
            for_it: Because of a metric. If that is no better then, it is one of
                something else than what is trained, of the classes before, say: until
                it has been well once it is not held against the run.
            anew: To weights that had learned next to nothing: nor is the best.
        """
        if for_it:
            self._in_vain.add(self.name)
        self.fallen = 0
        self._fallen.clear()
        if anew:
            self._best.clear()

    def state(self) -> dict[str, Any]:
        """As plain numbers and strings."""
        return dict(
            now=[self.fallen, self.name, self.value, self.best, self.since],
            by_name=[dict(self._best), dict(self._fallen), dict(self._good)],
            in_vain=sorted(self._in_vain),
        )

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state` gave."""
        self.fallen, self.name, self.value, self.best, self.since = state["now"]
        self._best, self._fallen, self._good = (dict(x) for x in state["by_name"])
        self._in_vain = set(state.get("in_vain", ()))
