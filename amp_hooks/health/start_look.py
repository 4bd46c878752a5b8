"""Is a start ruined? The weights of now and those of the start, on the same batches."""

from __future__ import annotations

from typing import Any

from ..engine.condition import Condition, Costs, State
from .thresholds import START_FAR, START_LOOK, START_WORSE

# At these iterations, on all ranks alike: the answer is sent to all of them.
APART = 10
LOOKS = tuple(START_LOOK + APART * i for i in range(4))
FEWEST = 2  # with objects


class StartLook:
    """Looks at a run some iterations after its start.

    The first batches of a run are noisy, and few where the warm-up is short: their
    losses alone cannot tell a start that is ruined from one that costs twice as much
    for a while and has recovered 50 iterations later, as fine-tunes of two-stage
    detectors do that hardly warm up. Several batches, not too soon, tell the two apart.
    """

    def __init__(self) -> None:
        self._now: list[float] = []
        self._before: list[float] = []
        self._cannot = False
        self._begun = 0  # iteration; there after it went back

    def due(self, iteration: int) -> bool:
        """Whether the weights are to be compared now; on all ranks alike."""
        return iteration - self._begun in LOOKS and not self._cannot

    def waits(self, iteration: int, ratio: float | None) -> bool:
        """Whether losses above the start's mean nothing yet.

        Args:
            iteration: The present one.
            ratio: Loss of now over that of the start, where it is what speaks against
                the run; None where something else does.
        """
        if self._cannot or ratio is None:
            return False
        return ratio < START_FAR and iteration - self._begun < LOOKS[-1]

    def last(self, iteration: int) -> bool:
        """Whether all have been made now."""
        return iteration - self._begun == LOOKS[-1]

    def add(self, costs: Costs | None) -> None:
        """Take in a look.

        Args:
            costs: On the last batch; None if the weights could not be compared. One
                that costs nothing or less, for there are no objects in it, say, tells
                nothing.
        """
        if costs is None or costs.taken_at > 0 or not costs.compared:
            self._cannot = True
        elif costs.comparable:
            self._now.append(costs.now)
            self._before.append(costs.before)

    @property
    def costs(self) -> tuple[float, float] | None:
        """Of a batch, with the weights of now and of the start; None: not known."""
        n = len(self._now)
        if self._cannot or n < FEWEST:
            return None
        return sum(self._now) / n, sum(self._before) / n

    @property
    def ruined(self) -> Condition | None:
        """What is to be said after the last look; None if it is not known to be ill."""
        if self.costs is None or self.costs[0] <= START_WORSE * self.costs[1]:
            return None
        now, before = self.costs
        why = (
            f"a batch costs {now:.3g}, and {before:.3g} with the weights that the run "
            "began with"
        )
        return Condition(State.ILL, since=0, why=why, loss_ratio=now / before)

    def clears(self, iteration: int, over_start: float | None) -> bool:
        """Whether the last look has just told that it is not ruined, as it seemed."""
        seemed = over_start is not None and self.last(iteration)
        return seemed and self.costs is not None and self.ruined is None

    @property
    def words(self) -> str:
        """Both costs, once they are known."""
        now, before = self.costs or (0.0, 0.0)
        return (
            f"over {len(self._now)} batches the weights of now cost {now:.3g}, and "
            f"{before:.3g} those that the run began with"
        )

    def went_back(self, iteration: int) -> None:
        """Those were the costs of other weights, and it begins anew."""
        self._now, self._before, self._begun = [], [], iteration

    def state(self) -> list[Any]:
        """As plain numbers and lists."""
        return [self._now, self._before, int(self._cannot), self._begun]

    def load_state(self, state: list[Any]) -> None:
        """Take back what :meth:`state` gave."""
        self._now, self._before = list(state[0]), list(state[1])
        self._cannot, self._begun = bool(state[2]), state[3]
