"""Is a start ruined? The weights of now and those of the start, on the same batch."""

from __future__ import annotations

from ..engine.condition import Condition, Costs, State
from .thresholds import START_LOOK, START_WORSE

# At these iterations, on all ranks alike: the answer is sent to all of them.
LOOKS = (START_LOOK, 2 * START_LOOK, 4 * START_LOOK)


def ruined_start(costs: Costs | None) -> Condition | None:
    """What is to be said of a run whose start its weights of now cost more than.

    The first batches of a run are noisy, and few where the warm-up is short: their
    losses alone cannot tell a start that is ruined by x2 from one that rises by x1.4
    for a while, as healthy ones do. On the same batch the two are far apart.

    Args:
        costs: On the last batch; ``None`` if they could not be compared.

    Returns:
        That it is ill, since its first iteration; ``None`` if it is not, if the
        snapshot is no longer that of the start, or if a batch costs nothing or less.
    """
    if costs is None or costs.taken_at > 0 or not costs.comparable:
        return None
    if not costs.worse(START_WORSE):
        return None
    why = (
        f"a batch costs {costs.now:.3g}, and {costs.before:.3g} with the weights that "
        "the run began with"
    )
    return Condition(State.ILL, since=0, why=why, loss_ratio=costs.now / costs.before)
