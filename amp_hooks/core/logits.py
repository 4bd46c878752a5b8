"""Measure and bound the magnitude of logits."""

from __future__ import annotations

import math

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


def clamp_logits(logits: Tensor, limit: float) -> tuple[Tensor, Tensor]:
    """Clamp to ``[-limit, limit]``.

    Inside the limit values and gradients are unchanged; outside the gradient is zero;
    NaN stays NaN.

    Returns:
        The clamped tensor and the fraction of values beyond the limit, a 0-d tensor.
    """
    with torch.no_grad():
        beyond = (logits.detach().abs() > limit).float()
        fraction = beyond.mean() if beyond.numel() else beyond.sum()
    return logits.clamp(-limit, limit), fraction
