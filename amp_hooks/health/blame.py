"""Is it the weights that make a run ill?"""

from __future__ import annotations

from collections.abc import Sequence

from ..engine.condition import Condition, Costs
from .thresholds import (
    AGAINST_EACH_OTHER,
    BLIND,
    MODERATE,
    START_EARLY,
    UNLIKE,
    WORSE,
)


def excuse(ill: Condition, costs: Costs | None, optimizers: int) -> str | None:
    """Why it is not the weights; ``None``: it is, as far as is known.

    Args:
        ill: As found.
        costs: The last batch, with the weights of now and of before; ``None`` if that
            is not known.
        optimizers: Of how many the run steps. Each has a loss of its own where the
            batch cannot be run again as a whole, and they may be adversaries: a
            generator's loss rises as its discriminator learns (Goodfellow et al. 2014).
    """
    if costs is not None and costs.compared:
        no_better = blind(costs) and costs.now > costs.before / WORSE
        return None if no_better or costs.worse(WORSE) else str(costs)
    moderate = ill.by_loss and (ill.loss_ratio or 1.0) < AGAINST_EACH_OTHER
    if optimizers > 1 and moderate:
        return f"{optimizers} optimizers may work against each other, as in a GAN"
    if costs is not None and costs.now < costs.before / WORSE:
        return str(costs)  # nothing is to be gained there
    return None


def blind(costs: Costs) -> bool:
    """Whether the weights of before know too little to tell.

    Those of a start cost the same on any batch, and as much as ruined ones, which have
    unlearned everything. So they excuse nothing that costs as much, and accuse nothing
    but what costs far more: good weights are wrong with confidence on new classes.
    """
    return costs.usual > BLIND and costs.unlike < UNLIKE


def undecided(ill: Condition, costs: Costs | None) -> bool:
    """Whether time may tell better, as long as the run learns.

    To go back to weights that are blind is to begin anew, and a run that is ruined
    loses nothing by waiting. New data are learned meanwhile, and noise in their labels
    makes weights that were too sure of themselves less so.

    Args:
        ill: As found.
        costs: As for :func:`excuse`.
    """
    if costs is None or not costs.comparable or ill.lr_rose or ill.warms_up:
        return False
    if ill.since is None or ill.since < START_EARLY:
        return False
    if blind(costs):
        return not costs.worse(AGAINST_EACH_OTHER)
    return costs.compared and not costs.worse(MODERATE)


def are_worse(looks: Sequence[Costs], times: float) -> bool:
    """Whether the weights of now cost clearly more over several batches.

    Args:
        looks: At each of them.
        times: How much more. Where weights of before know too little to tell, what
            costs as much as they do has been unlearned.
    """
    now, before = sum(c.now for c in looks), sum(c.before for c in looks)
    return now > (before / WORSE if any(map(blind, looks)) else times * before)
