"""Change the learning rate of a run that has schedulers: for good, or for one step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..engine.checks import check_int, check_number

# What is in units of the learning rate, besides "lr" itself. Everything a scheduler
# computes from these scales with them; ratios, such as eta_min_ratio, must stay.
GROUP_KEYS = ("initial_lr", "max_lr", "min_lr")
SCHEDULER_ATTRIBUTES = ("base_values", "eta_min", "eta_max", "min_values")


def scale_lr(
    param_groups: Iterable[dict[str, Any]], schedulers: Iterable[Any], factor: float
) -> None:
    """Multiply the learning rate by ``factor`` now and in everything still to come.

    Schedulers compute the next learning rate from the present one, from the initial
    ones (``base_values``), from bounds given as numbers (``eta_min``) or kept in the
    param groups (OneCycle). Scaling only ``lr`` is therefore undone by some of them;
    scaling all these makes the whole trajectory ``factor`` times what it was.

    Args:
        param_groups: Of all optimizers at once, changed in place. An MMEngine wrapper's
            own ``param_groups`` are the ones to give: they hold the base learning rate
            too. Learning rates that are tensors are changed in place, for compiled
            optimizers hold on to them; one that groups share is changed once.
        schedulers: MMEngine parameter schedulers, of all optimizers. Those of other
            parameters, such as momentum, are left alone.
        factor: Greater than 0; above 1 to take a change back. Factors multiply.

    Raises:
        TypeError, ValueError: If ``factor`` is not such a number.
    """
    check_number("scale_lr", "factor", factor, 0)
    groups = _distinct(param_groups)
    for scheduler in _distinct(schedulers):
        if getattr(scheduler, "param_name", None) != "lr":
            continue
        # Of ReduceOnPlateau, the smallest reduction that it makes. Elsewhere the name
        # may stand for anything.
        eps = ("eps",) if hasattr(scheduler, "min_values") else ()
        for name in (*SCHEDULER_ATTRIBUTES, *eps):
            if (value := getattr(scheduler, name, None)) is not None:
                setattr(scheduler, name, _times(value, factor))
    for group in groups:
        for key in GROUP_KEYS:
            if group.get(key) is not None:
                group[key] = _times(group[key], factor)
    # Last and only here in place: MMEngine's first scheduler makes the initial learning
    # rate and the base values the very tensor that the learning rate is.
    _multiply_now(groups, factor)


class TemporaryLR:
    """Multiply the learning rate for one iteration, unseen by schedulers.

    Most schedulers compute the next learning rate from the present one, so a re-warm-up
    is applied in ``before_train_iter`` and undone in ``after_train_iter``, before
    ParamSchedulerHook, and before anything else that changes, saves or replaces the
    learning rate or the param groups.
    """

    def __init__(self) -> None:
        self._kept: list[tuple[dict[str, Any], Any, Any, Any]] = []

    def apply(self, param_groups: Iterable[dict[str, Any]], factor: float) -> None:
        """Multiply until :meth:`undo`. What is still applied is undone first.

        Args:
            param_groups: As for :func:`scale_lr`.
            factor: Greater than 0.

        Raises:
            TypeError, ValueError: If ``factor`` is not such a number.
        """
        check_number("TemporaryLR", "factor", factor, 0)
        self.undo()
        groups = [group for group in _distinct(param_groups) if "lr" in group]
        kept = [(group, group["lr"], _copy(group["lr"])) for group in groups]
        _multiply_now(groups, factor)
        self._kept = [(*entry, entry[0]["lr"]) for entry in kept]

    def undo(self) -> None:
        """Put the learning rates back, bit for bit; nothing if none was applied.

        One that somebody else has written meanwhile stays, unless it was made of the
        one that was applied: then what was done to that is done to what is put back.
        """
        if not self._kept:
            return
        with torch.no_grad():
            for group, lr, value, applied in self._kept:
                if isinstance(lr, Tensor):
                    lr.copy_(value)
                now = group.get("lr")
                if now is applied:
                    group["lr"] = lr
                elif (times := _made_of(now, applied, lr)) is not None:
                    group["lr"] = lr * times
        self._kept = []


def _made_of(now: Any, applied: Any, lr: Any) -> float | None:
    """What ``applied`` was multiplied by, if it is nearer to ``now`` than ``lr``."""
    rates = (now, applied, lr)
    if not all(isinstance(rate, (int, float)) and rate > 0 for rate in rates):
        return None
    if abs(math.log(now / applied)) >= abs(math.log(now / lr)):
        return None
    return float(now / applied)


def warmup_factor(done: int, iters: int, start: float = 0.001) -> float:
    """How far a linear warm-up has come.

    It is the factor of MMEngine's ``LinearLR(start_factor=start, end=iters + 1)``.

    Args:
        done: Iterations since the warm-up began; 0 in its first iteration.
        iters: Length; 0 is no warm-up.
        start: Factor in the first iteration, in (0, 1]. 0.001 is what MMDetection's
            schedules start from (``_base_/schedules/schedule_1x.py``). Defaults to
            0.001.

    Returns:
        In iterations 0 to ``iters`` - 1, a factor that grows from ``start`` by equal
        steps; from then on exactly 1.0.

    Raises:
        TypeError, ValueError: If an argument is out of range.
    """
    check_int("warmup_factor", "done", done, 0)
    check_int("warmup_factor", "iters", iters, 0)
    check_number("warmup_factor", "start", start, 0, 1)
    return 1.0 if done >= iters else start + (1.0 - start) * done / iters


def recovered(factor: float, step: float = 2.0) -> float:
    """The total learning rate factor after one more clean stretch.

    Args:
        factor: What the learning rate is multiplied by so far, greater than 0.
        step: Growth per stretch, greater than 1. Defaults to 2.0.

    Returns:
        ``factor * step``, at most 1.0; exactly 1.0 where only rounding is missing.

    Raises:
        TypeError, ValueError: If an argument is out of range.
    """
    check_number("recovered", "factor", factor, 0)
    check_number("recovered", "step", step, 1)
    larger = factor * step
    return 1.0 if larger > 1.0 - 1e-9 else larger


def _distinct(items: Iterable[Any]) -> list[Any]:
    """Every object once: a scheduler may be listed under several optimizers."""
    return list({id(item): item for item in items}.values())


def _times(value: Any, factor: float) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_times(v, factor) for v in value)
    return value * factor


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


@torch.no_grad()
def _multiply_now(groups: list[dict[str, Any]], factor: float) -> None:
    """Multiply ``lr`` in every group, and a tensor that groups share only once."""
    tensors = {}
    for group in groups:
        lr = group.get("lr")
        if isinstance(lr, Tensor):
            tensors[id(lr)] = lr
        elif lr is not None:
            group["lr"] = lr * factor
    for lr in tensors.values():
        lr.mul_(factor)
