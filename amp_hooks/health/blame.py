"""Is it the weights that make a run ill?"""

from __future__ import annotations

from ..engine.condition import Condition, Costs
from .thresholds import AGAINST_EACH_OTHER, WORSE


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
    if costs is not None:
        return None if costs.worse(WORSE) else str(costs)
    moderate = ill.by_loss and (ill.loss_ratio or 1.0) < AGAINST_EACH_OTHER
    if optimizers > 1 and moderate:
        return f"{optimizers} optimizers may work against each other, as in a GAN"
    return None
