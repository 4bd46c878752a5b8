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
        # By name: iterations at which it was better than before, and its value.
        self._best: dict[str, list[tuple[int, float]]] = {}
        self._fallen: dict[str, int] = {}
        self._good: dict[str, int] = {}
        self._in_vain: set[str] = set()  # fell, and went back for it

    def add(self, iteration: int, name: str, value: float, larger: bool) -> None:
        """Take in an evaluation; metrics of which less is better say nothing here."""
        if not larger or not math.isfinite(value):
            return
        bests = self._best.setdefault(name, [])
        if not bests or value > bests[-1][1]:
            bests.append((iteration, value))
        best = bests[-1][1]
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

    def went_back(self, for_it: bool, target: int) -> None:
        """What fell is gone, and so is the best of weights that were given up.

        Args:
            for_it: Because of a metric. If that is no better then, it is one of
                something else than what is trained, of the classes before, say: until
                it has been well once it is not held against the run.
            target: Iteration of the weights it went back to.
        """
        if for_it:
            self._in_vain.add(self.name)
        self.fallen = 0
        self._fallen.clear()
        for name, bests in self._best.items():
            self._best[name] = [best for best in bests if best[0] <= target]

    def state(self) -> dict[str, Any]:
        """As plain numbers and strings."""
        best = {n: [list(pair) for pair in bests] for n, bests in self._best.items()}
        return dict(
            now=[self.fallen, self.name, self.value, self.best, self.since],
            by_name=[best, dict(self._fallen), dict(self._good)],
            in_vain=sorted(self._in_vain),
        )

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state` gave."""
        self.fallen, self.name, self.value, self.best, self.since = state["now"]
        best, self._fallen, self._good = (dict(x) for x in state["by_name"])
        # Of an earlier version: a number each, and it is not known when.
        pairs = {n: x if isinstance(x, list) else [(0, x)] for n, x in best.items()}
        self._best = {n: [(int(i), x) for i, x in p] for n, p in pairs.items()}
        self._in_vain = set(state.get("in_vain", ()))
