"""Has a learning rate that jumped ruined the run? Its weights and those of before."""

from __future__ import annotations

from typing import Any

from ..engine.condition import Condition, Costs, State
from .blame import are_worse, blind
from .jump import Jump
from .rate_rise import RateRise
from .thresholds import RISE_LOOK, RISE_WORSE, UNLIKE

# Of two in a row one may be a batch that says little.
LOOKS = tuple(RISE_LOOK * 2**i for i in range(4))


class RiseLook:
    """Looks at a run some iterations after its learning rate has jumped.

    What is unlearned then need not show in the loss: early in a run, or where batches
    differ a lot, that of an untrained model is within the range. On the same batch the
    weights of now and those of the last snapshot are far apart.
    """

    def __init__(self) -> None:
        # Its own: Symptoms hears of no bad iteration, in which ranks may differ.
        self._rise = RateRise()
        self.jump = Jump()
        self._last: Costs | None = None  # look

    def due(self, iteration: int, lr: float | None, cost: float | None) -> bool:
        """Take in an iteration; on all ranks alike, whatever their losses are.

        Args:
            iteration: The present one.
            lr: Its learning rate.
            cost: Loss of the weights of now, where the run is healthy; of this rank.

        Returns:
            Whether the two are to be compared now.
        """
        if lr is not None:
            self._rise.add(iteration, lr)
        jump = self.jump
        if self._rise.last != jump.seen:
            jump.seen, self._last = self._rise.last, None
        elif jump.seen is None or iteration - jump.seen[0] > LOOKS[-1]:
            jump.cost = cost
        return jump.seen is not None and iteration - jump.seen[0] in LOOKS

    def ruined(self, costs: Costs | None) -> Condition | None:
        """What is to be said of it; ``None`` if it is well, or not known to be ill.

        Args:
            costs: Answer to the question. Two in a row decide.
        """
        last, self._last = self._last, costs
        if last is None or costs is None or self.jump.seen is None:
            return None
        if not _both_are_worse(last, costs):
            return None
        since, rise = self.jump.seen
        why = f"{costs}{', which had learned little' if blind(costs) else ''}"
        why += f"; the learning rate rose x{rise:.3g} at iteration {since}"
        ratio = costs.now / costs.before
        return Condition(State.ILL, since, why, ratio, lr_rise=rise)

    def forget(self) -> None:
        """The run went back, or these are not its weights any more."""
        self._rise.forget()
        self.jump.seen = self._last = None

    def state(self) -> dict[str, Any]:
        """As plain numbers."""
        return dict(self._rise.state(), look=self.jump.state())

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state` gave."""
        self._rise.load_state(state)
        self.jump.load_state(state.get("look", dict(seen=self._rise.last, cost=None)))


def _both_are_worse(one: Costs, two: Costs) -> bool:
    """Each somewhat, and both together clearly: batches differ."""
    for costs in (one, two):
        if not (costs.compared and costs.comparable):
            return False
        if costs.now < (costs.before / UNLIKE if blind(costs) else costs.before):
            return False
    return are_worse([one, two], RISE_WORSE)
