"""Measure and bound the magnitude of logits."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

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


def infinity_is_overflow(module: nn.Module) -> bool:
    """Whether an infinity in the output of a module can only come from overflow.

    So it is in a convolution or linear layer. Any other module may mask positions with
    it (text tokens in Grounding DINO, say).
    """
    return isinstance(module, (nn.Linear, _ConvNd))


def largest_number(logits: Tensor) -> float:
    """The largest finite number of the precision that the logits were computed in."""
    return FP16_MAX if rehearsing_half() else torch.finfo(logits.dtype).max


def headroom_bits(absmax: float, limit: float = FP16_MAX) -> float:
    """Doublings left before ``absmax`` exceeds ``limit``: log2(limit / absmax).

    Negative once beyond it. Magnitudes below 1/256 count as that, so that the
    headroom of logits that are all 0 is a number. Infinite ones have -inf.
    """
    if math.isinf(absmax):
        return -math.inf
    return math.log2(limit / max(absmax, 2.0**-8))


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
