"""Is it the weights that make a run ill?"""

from __future__ import annotations

from ..engine.condition import Condition, Costs
from .thresholds import (
    AGAINST_EACH_OTHER,
    BLIND,
    BLIND_LEARNS,
    BLIND_WAIT,
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


def undecided(
    ill: Condition, costs: Costs | None, iteration: int, ratio: float | None = None
) -> bool:
    """Whether to wait: time tells where weights that are blind are all there is.

    To go back to them is to begin anew, and a run that is ruined loses nothing by
    waiting. New data are learned meanwhile.

    Args:
        ill: As found.
        costs: As for :func:`excuse`.
        iteration: The present one.
        ratio: The loss over its level when this was asked before of the same onset: as
            long as it falls something is learned.
    """
    if costs is None or not blind(costs) or ill.lr_rose:
        return False
    since = iteration if ill.since is None else ill.since
    learns = ratio is not None and (ill.loss_ratio or ratio) < BLIND_LEARNS * ratio
    soon = iteration - since < BLIND_WAIT or learns
    return soon and since >= START_EARLY and not costs.worse(AGAINST_EACH_OTHER)
