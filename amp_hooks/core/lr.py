"""Scale the learning rate of a run that has schedulers, for the rest of the run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def scale_lr(
    param_groups: Iterable[dict[str, Any]], schedulers: Iterable[Any], factor: float
) -> None:
    """Multiply the learning rate by ``factor`` now and in everything still to come.

    Schedulers compute the next learning rate from the present one, from the initial
    ones (``base_values``) or from bounds kept in the param groups (OneCycle). Scaling
    only ``lr`` is therefore undone by some of them; scaling all these makes the whole
    trajectory ``factor`` times what it was.

    Args:
        param_groups: Of the optimizer, changed in place. An MMEngine wrapper's own
            ``param_groups`` are the ones to give: they hold the base learning rate too.
        schedulers: MMEngine parameter schedulers. Those of other parameters, such as
            momentum, are left alone.
        factor: Greater than 0.
    """
    for group in param_groups:
        for key in ("lr", "initial_lr", "max_lr", "min_lr"):
            if group.get(key) is not None:
                # In place if it is a tensor: compiled optimizers hold on to it.
                group[key] *= factor
    for scheduler in schedulers:
        if getattr(scheduler, "param_name", None) != "lr":
            continue
        if hasattr(scheduler, "base_values"):
            scheduler.base_values = [v * factor for v in scheduler.base_values]
        # A lower bound given as a number is part of the trajectory as well.
        if getattr(scheduler, "eta_min", None) is not None:
            scheduler.eta_min *= factor
        if hasattr(scheduler, "min_values"):
            scheduler.min_values = [v * factor for v in scheduler.min_values]
