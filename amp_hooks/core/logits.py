"""Measure and bound the magnitude of logits."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

FP16_MAX = 65504.0  # the largest finite half-precision number


@torch.no_grad()
def logit_stats(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Largest magnitude over the finite values, and whether any value is not finite.

    Args:
        logits: Any shape, any floating dtype, any number of elements.

    Returns:
        ``(absmax, nonfinite)``, 0-d float32 tensors on the same device; ``nonfinite``
        is 1.0 or 0.0. Nothing is copied to the host.
    """
    x = logits.detach()
    if not x.numel():
        zero = x.new_zeros((), dtype=torch.float32)
        return zero, zero
    finite = torch.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = torch.aminmax(finite)
    # x - x is 0 where x is finite and NaN elsewhere; the sum of zeros cannot overflow.
    nonfinite = torch.isnan((x - x).sum())
    return torch.maximum(-low, high).float(), nonfinite.float()


def headroom_bits(absmax: float, limit: float = FP16_MAX) -> float:
    """Doublings left before ``absmax`` exceeds ``limit``: log2(limit / absmax).

    Negative once beyond it; at most 24, as for anything below FP16's resolution at 0.
    """
    return min(24.0, math.log2(limit / absmax)) if absmax > 0 else 24.0


class _Clamp(torch.autograd.Function):
    """As torch.clamp, but the gradient keeps its memory layout.

    torch.clamp hands on a gradient in another layout than it got. The values are the
    same, but a convolution then sums its bias gradient in another order, and the last
    bit of a weight changes although nothing was clamped.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, beyond: Tensor, limit: float) -> Tensor:
        ctx.save_for_backward(beyond)
        return logits.clamp(-limit, limit)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (beyond,) = ctx.saved_tensors
        # masked_fill without the underscore would change the layout as well.
        return grad.clone().masked_fill_(beyond, 0.0), None, None


def clamp_logits(logits: Tensor, limit: float) -> tuple[Tensor, Tensor]:
    """Clamp to ``[-limit, limit]``.

    Inside the limit values and gradients are unchanged; outside the gradient is zero;
    NaN stays NaN.

    Returns:
        The clamped tensor and the fraction of values beyond the limit, a 0-d tensor.
    """
    with torch.no_grad():
        beyond = logits.detach().abs() > limit
        fraction = beyond.float().mean() if beyond.numel() else beyond.float().sum()
    clamped: Tensor = _Clamp.apply(logits, beyond, limit)  # type: ignore[no-untyped-call]
    return clamped, fraction
