"""Measure and bound the magnitude of logits."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..engine import private
from ..engine.headroom import FP16_MAX
from ..precision.half_rehearsal import rehearsing_half


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
    return isinstance(module, nn.Linear) or private.is_convolution(module)


def largest_number(logits: Tensor) -> float:
    """The largest finite number of the precision that the logits were computed in."""
    return FP16_MAX if rehearsing_half() else torch.finfo(logits.dtype).max
