"""After going back: was it the model, or is this the loss of new data?"""

from __future__ import annotations

import math
from typing import Any

from .thresholds import (
    BACK_AT_ONCE,
    BACK_FOR,
    BACK_PATIENCE,
    NORMAL_NEAR,
    NORMAL_RATIO,
)

AT_ONCE = 5  # losses: training has hardly begun after going back
AGAIN = 2  # times going back to the same height: whatever it is, it does not diverge


class GoingBack:
    """Remembers how high the loss was, and how high it is after going back.

    Where the loss stands at the same moderate height from the first batches on, the
    weights of before do not help: data or settings have changed, and nothing diverges.
    Where it is far out from the first batches on, it is not the weights either, and to
    go back once more right away would not help.
    """

    def __init__(self) -> None:
        self._height: float | None = None  # log over the level, when it went back
        self._first: list[float] = []
        self._times = 0
        self._seen: int | None = None  # iterations since
        self._was_inside = False  # the range, since then
        self._then: float | None = None
        self._width = 0.0

    def begin(
        self, height: float | None, then: float | None = None, width: float = 0.0
    ) -> None:
        """The run goes back.

        Args:
            height: As it was, if it was the loss that made it go back.
            then: When the weights gone back to were taken; None: not known.
            width: Of the healthy range.
        """
        self._height, self._then, self._width = height, then, width
        self._times = self._times + 1 if height is not None else 0
        self._first = []
        self._seen, self._was_inside = 0, False

    def add(self, height: float, inside: bool) -> None:
        """Take in the log of the loss over its level; whether it is in its range."""
        if self._seen is None:
            return
        self._seen += 1
        self._was_inside |= inside
        if len(self._first) < AT_ONCE:
            self._first.append(height)
        if self._seen >= BACK_FOR:
            self._height, self._first, self._times, self._seen = None, [], 0, None

    @property
    def in_vain(self) -> bool:
        """Whether the weights gone back to cost far more than when they were taken.

        From the first batch on, which no step has come before. Then it is the data, a
        setting, or a hook that changes the weights on purpose, as for pruning.
        """
        if self._height is None or self._then is None or len(self._first) < AT_ONCE:
            return False
        out = self._then + max(self._width, self._height / 2)
        return min(self._first[0], sorted(self._first)[AT_ONCE // 2]) > out

    @property
    def patience(self) -> float:
        """Times the usual patience: less, for it has been ill before."""
        if self._seen is None:
            return 1.0
        known = sorted(self._first)
        far_out = not known or known[len(known) // 2] > math.log(NORMAL_RATIO)
        return BACK_AT_ONCE if far_out and not self._was_inside else BACK_PATIENCE

    def is_normal(self, height: float) -> bool:
        """Whether a loss of this height is what it now costs.

        Args:
            height: Log of the loss over its level, of late.
        """
        if self._height is None or len(self._first) < AT_ONCE:
            return False
        if abs(height - self._height) > NORMAL_NEAR or height > math.log(NORMAL_RATIO):
            return False
        first = sorted(self._first)[AT_ONCE // 2]
        return first >= height / 2 or self._times >= AGAIN

    def state(self) -> dict[str, Any]:
        """As plain numbers."""
        return dict(
            height=self._height,
            first=list(self._first),
            times=self._times,
            seen=self._seen,
            was_inside=int(self._was_inside),
            then=self._then,
            width=self._width,
        )

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state` gave."""
        self._height, self._first = state["height"], list(state["first"])
        self._times, self._seen = state["times"], state["seen"]
        self._was_inside = bool(state["was_inside"])
        self._then, self._width = state.get("then"), state.get("width", 0.0)
