"""A quantity over the iterations of a run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from typing import Any, TypeAlias

# In quotes: NumPy's types have no [] on Python 3.8.

Array: TypeAlias = "np.ndarray[Any, Any]"


@dataclass(frozen=True)
class Curve:
    """Values at iterations.

    Attributes:
        iters: 0-based iterations, rising; int64 of shape ``(n,)``.
        values: Their values, NaN and infinities included; float64 of shape ``(n,)``.
    """

    iters: Array
    values: Array

    @classmethod
    def of(cls, points: Iterable[tuple[int, float]]) -> Curve:
        """From ``(iteration, value)`` pairs in any order."""
        ordered = sorted(points, key=lambda point: point[0])
        return cls(
            np.array([i for i, _ in ordered], dtype=np.int64),
            np.array([v for _, v in ordered], dtype=np.float64),
        )

    def __len__(self) -> int:
        """How many points there are."""
        return len(self.iters)

    def within(self, first: float, end: float) -> Curve:
        """The points from iteration ``first`` to before ``end``."""
        keep = slice(*np.searchsorted(self.iters, [first, end]))
        return Curve(self.iters[keep], self.values[keep])

    def then(self, later: Curve) -> Curve:
        """This curve up to where ``later`` begins, and ``later``."""
        head = self.within(0, later.iters[0]) if len(later) else self
        return Curve(
            np.concatenate([head.iters, later.iters]),
            np.concatenate([head.values, later.values]),
        )

    @property
    def finite(self) -> Curve:
        """The points whose value is finite."""
        keep = np.isfinite(self.values)
        return Curve(self.iters[keep], self.values[keep])

    def thinned(self, limit: int = 2000) -> Curve:
        """At most about ``limit`` points that keep every peak and every low.

        Of each of ``limit / 2`` equal bins of iterations, the points with the smallest
        and the largest finite value are kept, or one that is not finite if all are so.
        """
        if len(self) <= limit:
            return self
        span = self.iters[-1] - self.iters[0] + 1
        bins = (self.iters - self.iters[0]) * (limit // 2) // span
        finite = np.isfinite(self.values)
        alone = ~np.isin(bins, bins[finite])  # in bins without a finite value
        candidates = np.flatnonzero(finite | alone)
        bins = bins[candidates]
        order = np.lexsort((self.values[candidates], bins))
        firsts = np.flatnonzero(np.diff(bins[order], prepend=-1))
        lasts = np.append(firsts[1:], len(order)) - 1
        keep = np.unique(candidates[np.concatenate([order[firsts], order[lasts]])])
        return Curve(self.iters[keep], self.values[keep])


EMPTY = Curve.of([])
