"""When bad iterations are too many; the defaults of RollbackHook that others use."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

PATIENCE = 3  # bad iterations in a row: one bad batch is data, two are bad luck
# 7 of 20: a run that limps without ever failing three times in a row.
WINDOW, SHARE = 20, 0.35
LR_FACTOR = 0.1  # what dlib takes when training diverges
WARMUP_ITERS = 100  # after a rollback
AT_ONCE = 10  # iterations after one
NEXT_TO_NOTHING = 1e-3  # of a learning rate


def returned_at_once(
    rollbacks: Sequence[int], end: int, lr_factor: float, warmup_iters: float
) -> bool:
    """Whether what was bad was bad again soon after each of the last two rollbacks.

    So soon a lowered learning rate is next to nothing, and is not what makes it bad.

    Args:
        rollbacks: Their iterations, rising.
        end: Where the run was given up, or its last iteration.
        lr_factor: Learning rate over the schedule's, after the last one's warm-up.
        warmup_iters: Length of that.
    """
    last = [*rollbacks, end][-3:]
    if len(last) < 3 or any(b - a > AT_ONCE for a, b in zip(last, last[1:])):
        return False
    risen = min(1.0, (last[2] - last[1]) / warmup_iters) if warmup_iters else 1.0
    return lr_factor * risen <= NEXT_TO_NOTHING


class BadStreak:
    """Counts bad iterations, in a row and among the last few.

    Args:
        patience: Bad ones in a row that are too many.
        window: Iterations looked back on.
        share: Bad share of the window that is too much, in (0, 1].

    Attributes:
        length: Bad iterations in a row so far.
    """

    def __init__(
        self, patience: int = PATIENCE, window: int = WINDOW, share: float = SHARE
    ) -> None:
        self.patience = patience
        self.share = share
        self.length = 0
        self._last: deque[bool] = deque(maxlen=window)

    def add(self, bad: bool) -> None:
        """Take in an iteration; one that proves nothing is not to be given."""
        self.length = self.length + 1 if bad else 0
        self._last.append(bad)

    @property
    def too_many(self) -> bool:
        """Whether something must be done."""
        # Of the whole window, so that the first bad iteration of a run is not 100 %.
        window = self._last.maxlen or 1
        return self.length >= self.patience or sum(self._last) >= self.share * window

    def clear(self) -> None:
        """Begin anew."""
        self.length = 0
        self._last.clear()

    def state(self) -> list[int]:
        """The window as plain numbers."""
        return [int(bad) for bad in self._last]

    def load_state(self, state: list[int]) -> None:
        """Take back what :meth:`state` gave."""
        self.clear()
        for bad in state:
            self.add(bool(bad))
