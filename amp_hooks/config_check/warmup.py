"""How long a schedule warms the learning rate up."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

# Schedulers of MMEngine and MMDetection, without their suffix LR or ParamScheduler.
_RISING = ("Linear", "Constant", "QuadraticWarmup", "OneCycle")
_OTHERS = ("CosineAnnealing", "CosineRestart", "Exponential", "MultiStep", "Poly")
_KNOWN = (*_RISING, *_OTHERS, "ReduceOnPlateau", "Step")
_FIRST_FACTOR = 1 / 3  # default of LinearLR's start_factor and ConstantLR's factor


# MMDetection's own schedules warm up for so many iterations.
USUAL_WARMUP = 500


def needed_warmup(iters: int) -> int:
    """Iterations of warm-up that a run needs at least: a twentieth, 500 at most.

    Args:
        iters: Of the whole run.
    """
    return min(USUAL_WARMUP, math.ceil(iters / 20))


def remedy_warmup(iters: int, warmup: int = 0, failed: int | None = None) -> int:
    """Iterations of warm-up to advise: a tenth of the run, 500 at most.

    What is said before a run and what is said after it are this one number, unless the
    run failed where such a warm-up would have been over, or has had it.

    Args:
        iters: Of the whole run.
        warmup: Iterations of warm-up that it has.
        failed: First iteration in which something was wrong.
    """
    usual = max(min(USUAL_WARMUP, iters // 10), needed_warmup(iters))
    if failed is None or max(warmup, failed) < usual:
        return usual
    return max(2 * warmup, 2 * (failed + 1), usual)


def warmup_iters(
    schedulers: Sequence[Mapping[str, Any]], epoch_length: int | None = None
) -> float:
    """Iterations until the learning rate has risen to its full value.

    Args:
        schedulers: Entries of ``param_scheduler``.
        epoch_length: Iterations of an epoch, if that is known.

    Returns:
        0 without a warm-up; infinity if it has no end, or is counted in epochs of a
        length that is not known.
    """
    done = 0.0
    for scheduler in sorted(schedulers, key=lambda s: float(s.get("begin") or 0)):
        unit: float = 1
        if scheduler.get("by_epoch", True):
            unit = math.inf if epoch_length is None else epoch_length
        begin, end = scheduler.get("begin") or 0, _end(scheduler)
        if _rises(scheduler) and (begin * unit if begin else 0) <= done:
            done = max(done, end * unit if end else 0)
    return done


def all_known(schedulers: Sequence[Mapping[str, Any]]) -> bool:
    """Whether none of them is of a class whose warm-up we cannot know."""
    return all(
        _kind(scheduler) in _KNOWN or not _of_lr(scheduler) for scheduler in schedulers
    )


def _rises(scheduler: Mapping[str, Any]) -> bool:
    kind = _kind(scheduler)
    if kind not in _RISING or not _of_lr(scheduler):
        return False
    if kind == "Linear":
        first = scheduler.get("start_factor", _FIRST_FACTOR)
        return bool(first < scheduler.get("end_factor", 1.0))
    if kind == "Constant":
        return bool(scheduler.get("factor", _FIRST_FACTOR) < 1)
    return True


def _end(scheduler: Mapping[str, Any]) -> float:
    if _kind(scheduler) == "OneCycle":
        share = scheduler.get("pct_start", 0.3)
        return float(share * (scheduler.get("total_steps") or math.inf))
    end = scheduler.get("end")
    return math.inf if end is None else float(end)


def _kind(scheduler: Mapping[str, Any]) -> str:
    name = str(scheduler.get("type", "")).rsplit(".", 1)[-1]
    for suffix in ("LR", "Momentum", "ParamScheduler"):
        if name.endswith(suffix):
            return name[: -len(suffix)]
    return name


def _of_lr(scheduler: Mapping[str, Any]) -> bool:
    name = str(scheduler.get("type", ""))
    return not name.endswith("Momentum") and scheduler.get("param_name", "lr") == "lr"
