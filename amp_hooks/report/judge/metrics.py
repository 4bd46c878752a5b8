"""The metric that a run is judged by, over its evaluations."""

from __future__ import annotations

import math

from ...engine.config_values import dig
from ...health.main_metric import main_metric, save_best_of
from ...health.metric import Metrics
from ..read.history import RunHistory


def metric_of(run: RunHistory) -> tuple[str, list[tuple[int, float]]] | None:
    """The metric that HealthHook looks at: ``save_best``'s, else a known one.

    Returns:
        Its name and ``(iteration, value)`` of each evaluation. An evaluation in which
        nothing was found has no metrics, and counts as 0.
    """
    known: dict[str, float] = {}
    for validation in run.validations:
        known.update(validation.metrics)
    hooks = dig(run.config, "default_hooks", "checkpoint")
    found = main_metric(known, save_best_of(hooks or {}))
    if found is not None and not found[1]:  # less is better: no value says it is dead
        found = main_metric(known)
    if found is None:
        return None
    name = found[0]
    return name, [(v.iter, v.metrics.get(name, 0.0)) for v in run.validations]


def last_metric(run: RunHistory) -> tuple[str, float] | None:
    """Its last value, of an evaluation that has one."""
    found = metric_of(run)
    if found is None:
        return None
    values = [v.metrics[found[0]] for v in run.validations if found[0] in v.metrics]
    return found[0], values[-1]


def fallen(run: RunHistory) -> str | None:
    """It was alive and is no more: NaN in BatchNorm or EMA, say.

    Where it is 0 or not a number, or by HealthHook's rule: a model that predicts one
    class everywhere still has an mIoU.
    """
    found = metric_of(run)
    if found is None:
        return None
    name, values = found
    metrics = Metrics()
    lived: tuple[int, float] | None = None
    now = values[-1][1]
    for iteration, value in values:
        metrics.add(iteration, name, value, larger=True)
        if not metrics.fallen and math.isfinite(value) and value > 0:
            lived = iteration, value
    dead = not math.isfinite(now) or now <= 0 or metrics.fallen
    if not dead or lived is None:
        return None
    return f"{name} was {lived[1]:.3f} at iteration {lived[0]} and is {now:.3g} since"
