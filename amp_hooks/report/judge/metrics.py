"""The metric that a run is judged by, over its evaluations."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ...engine.config_values import dig, items_of
from ...engine.words import count
from ...health.main_metric import main_metric, of_masks, save_best_of
from ...health.metric import Metrics
from ..read.history import RunHistory

_TIMES = {"data_time", "time"}  # MMEngine has them in every evaluation
_A_FEW = 3


def metric_of(run: RunHistory) -> tuple[str, list[tuple[int, float]]] | None:
    """The metric that HealthHook looks at: ``save_best``'s, else a known one.

    Returns:
        Its name and ``(iteration, value)`` of each evaluation. An evaluation in which
        nothing was found has no metrics, and counts as 0.
    """
    for name, values, larger in _metrics_of(run):
        if larger:
            return name, values
    return None


def _metrics_of(run: RunHistory) -> Iterator[tuple[str, list[tuple[int, float]], bool]]:
    """All that ``save_best`` names, and whether larger is better; else a known one."""
    known: dict[str, float] = {}
    for validation in run.validations:
        known.update(validation.metrics)
    best = save_best_of(dig(run.config, "default_hooks", "checkpoint") or {})
    asked = dict(filter(None, (main_metric(known, [one]) for one in best)))
    if not any(asked.values()):  # where less is better only NaN says that it is dead
        asked.update(filter(None, [main_metric(known)]))
        masks = {of_masks(name) for name in asked} & set(known) - set(asked)
        asked.update(dict.fromkeys(masks, True))
    for name, larger in asked.items():
        having = [
            v
            for v in run.validations
            if name in v.metrics or (larger and not set(v.metrics) - _TIMES)
        ]
        yield name, [(v.iter, v.metrics.get(name, 0.0)) for v in having], larger


def last_metric(run: RunHistory) -> tuple[str, float] | None:
    """Its name, and its value at the last evaluation."""
    found = metric_of(run)
    return None if found is None else (found[0], found[1][-1][1])


def fallen(run: RunHistory) -> str | None:
    """A metric was alive and is no more: NaN in BatchNorm or EMA, say."""
    return next(filter(None, (_fallen(*found) for found in _metrics_of(run))), None)


def never_alive(run: RunHistory) -> str | None:
    """Every evaluation was of a model that finds nothing; a few may be a beginning."""
    of_each = [set(v.metrics) - _TIMES for v in run.validations]
    if len(of_each) < _A_FEW:
        return None
    text = count(len(of_each), "evaluation")
    if not any(of_each) and _measures(run):  # so mmdet tells that there is no box
        return f"none of {text} found anything"
    for name, values, larger in _metrics_of(run):
        alive = [value for _, value in values if value != 0 and not math.isnan(value)]
        if larger and not alive:
            return f"{name} was {values[-1][1]:.3g} in all of {text}"
    return None


def _measures(run: RunHistory) -> bool:
    """Whether the evaluator is one that gives numbers."""
    evaluators = items_of(run.config.get("val_evaluator"))
    names = [str(evaluator.get("type")) for evaluator in evaluators]
    dumps = any(evaluator.get("format_only") for evaluator in evaluators)
    return any(name.endswith("Metric") for name in names) and not dumps


def _fallen(name: str, values: list[tuple[int, float]], larger: bool) -> str | None:
    """Where it is not a number, and of those of which more is better: 0.

    Or by HealthHook's rule: a model that predicts one class everywhere still has an
    mIoU.
    """
    metrics = Metrics()
    lived: tuple[int, float] | None = None
    now = values[-1][1]
    for iteration, value in values:
        if larger:
            metrics.add(iteration, name, value, larger=True)
        alive = math.isfinite(value) and (value > 0 or not larger)
        if alive and not metrics.fallen:
            lived = iteration, value
    dead = not math.isfinite(now) or (larger and now <= 0) or metrics.fallen
    if not dead or lived is None:
        return None
    return f"{name} was {lived[1]:.3f} at iteration {lived[0]} and is {now:.3g} since"
