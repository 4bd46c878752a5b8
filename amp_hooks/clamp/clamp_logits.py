"""Bound the magnitude of logits."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def clamp_logits(
    logits: Tensor, limit: float, soft: bool = False, keep_neg_inf: bool = False
) -> tuple[Tensor, Tensor]:
    """Clamp to ``[-limit, limit]``.

    Inside the limit values and gradients are unchanged; NaN stays NaN. Beyond the limit
    the gradient is zero, so that a value out there stays out there until something else
    moves it. With ``soft`` it passes where gradient descent along it leads back towards
    the limit, and is zero where it leads further out: a straight-through estimator
    (Bengio et al. 2013, arXiv:1308.3432) with its harmful half left out.
    ``tfp.math.clip_by_value_preserve_gradient`` of TensorFlow Probability lets both
    halves pass.

    Args:
        logits: Of any shape and floating dtype.
        limit: Largest magnitude let through.
        soft: Let the gradient beyond the limit pass where it heals.
        keep_neg_inf: Values of -inf are there by design, to mask positions: they stay,
            with their gradient, and do not count as beyond the limit.

    Returns:
        The clamped tensor and the fraction of values beyond the limit, a 0-d tensor.
    """
    with torch.no_grad():
        above, below = logits > limit, logits < -limit
        masked = logits == -math.inf if keep_neg_inf else None
        if masked is not None:
            below &= ~masked
        beyond = (above | below).float()
        fraction = beyond.mean() if beyond.numel() else beyond.sum()
    clamped: Tensor = _Clamp.apply(  # type: ignore[no-untyped-call]
        logits, above, below, masked, limit, soft
    )
    return clamped, fraction


class _Clamp(torch.autograd.Function):
    """As torch.clamp, but the gradient keeps its memory layout.

    torch.clamp hands on a gradient in another layout than it got. The values are the
    same, but a convolution then sums its bias gradient in another order, and the last
    bit of a weight changes although nothing was clamped.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        above: Tensor,
        below: Tensor,
        masked: Tensor | None,
        limit: float,
        soft: bool,
    ) -> Tensor:
        ctx.save_for_backward(above, below)
        ctx.soft = soft
        clamped = logits.clamp(-limit, limit)
        return clamped if masked is None else clamped.masked_fill_(masked, -math.inf)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        above, below = ctx.saved_tensors
        if ctx.soft:  # only what would drive a value further out
            above, below = above & (grad < 0), below & (grad > 0)
        # masked_fill without the underscore would change the layout as well.
        inner = grad.clone().masked_fill_(above | below, 0.0)
        return inner, None, None, None, None, None
