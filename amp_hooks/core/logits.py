"""Measure and bound the magnitude of logits."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .half_rehearsal import rehearsing_half

FP16_MAX = 65504.0  # the largest finite half-precision number


class LogitStats(NamedTuple):
    """What is known of one call's logits; 0-d float32 tensors on their device.

    Attributes:
        absmax: Largest magnitude over the finite values.
        nan: How many values are NaN.
        inf: How many are infinite.
    """

    absmax: Tensor
    nan: Tensor
    inf: Tensor


@torch.no_grad()
def logit_stats(logits: Tensor) -> LogitStats:
    """Measure logits of any shape, floating dtype and number of elements.

    Nothing is copied to the host.
    """
    x = logits.detach()
    if not x.numel():
        zero = x.new_zeros((), dtype=torch.float32)
        return LogitStats(zero, zero, zero)
    # Arithmetic in one buffer: on a CPU five times as fast as isnan and isinf, whose
    # masks take longer to make than to count.
    buffer = torch.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = torch.aminmax(buffer)
    buffer.sub_(x).nan_to_num_(nan=1.0, posinf=0.0, neginf=0.0)  # 1 where x is NaN
    nan = buffer.sum(dtype=torch.float32)
    torch.mul(x, 0.0, out=buffer).nan_to_num_(nan=1.0)  # 1 where x is not finite
    nonfinite = buffer.sum(dtype=torch.float32)
    return LogitStats(torch.maximum(-low, high).float().abs(), nan, nonfinite - nan)


def largest_number(logits: Tensor) -> float:
    """The largest finite number of the precision that the logits were computed in."""
    return FP16_MAX if rehearsing_half() else torch.finfo(logits.dtype).max


def headroom_bits(absmax: float, limit: float = FP16_MAX) -> float:
    """Doublings left before ``absmax`` exceeds ``limit``: log2(limit / absmax).

    Negative once beyond it. Magnitudes below 1/256 count as that, so that the
    headroom of logits that are all 0 is a number.
    """
    return math.log2(limit / max(absmax, 2.0**-8))


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
