"""A run whose weights were broken before its first step."""

from __future__ import annotations

import numpy as np

from ...engine.headroom import USELESS_LOGIT
from ..read.history import RunHistory
from .metrics import metric_of

_TIMES = 30.0  # those of a sound head begin with some times that of the end
_TIMES_POOR = 5.0  # where evaluations find next to nothing, or logits stay far out
_DEAD = 0.03  # of the metric that the run is judged by
_FEW = 5  # points of the curve
_LIVES = 0.1  # of a metric that goes to 1: somebody lives who had been given up
_LIVES_FAR_OUT = 0.5  # and whose logits are still out there


def broken_beginning(run: RunHistory) -> str | None:
    """It began with logits that were far out, and a loss to match.

    Every number is finite and the loss falls from the first step on, so that nothing
    later looks ill. But gradients of such a loss undo in a few steps what the backbone
    had learned before.

    Returns:
        Why it is lost, or None: pre-flight did not find such logits, the loss was no
        such loss, or an evaluation says that the model lives.
    """
    found = [h.names("findings") for h in run.having("preflight")]
    begins = any("large_logits" in names for names in found)
    losses = run.curve("amp/loss", "loss").finite
    if not begins or len(losses) < _FEW:
        return None
    first = float(losses.values[0])
    later = float(np.median(losses.values[len(losses) // 2 :]))
    logits = run.curve("amp/cls_score_absmax").finite.values
    stays = len(logits) > 0 and float(np.median(logits[-_FEW:])) > USELESS_LOGIT
    judged_by = metric_of(run)
    metrics = [value for _, value in judged_by[1]] if judged_by else []
    best = max(metrics, default=None)
    if best is not None and best > (_LIVES_FAR_OUT if stays else _LIVES):
        return None
    poor = best is not None and (stays or best < _DEAD)
    if not first > (_TIMES_POOR if poor else _TIMES) * later > 0:
        return None
    to_the_end = f", where they are to the end ({logits[-1]:.4g})" if stays else ""
    return (
        f"it began with a loss of {first:.5g}, {first / later:.2g} times what it has "
        f"been since, and with logits far out (pre-flight: large_logits){to_the_end}: "
        "gradients of such steps undo what the backbone had learned"
    )
