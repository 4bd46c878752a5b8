"""Measure the magnitude of logits, and see an overflow coming."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..engine import private, torch_api
from ..engine.headroom import FP16_MAX, USELESS_LOGIT
from ..precision.half_rehearsal import rehearsing_half

# The usual magnitude is an exponential average over so many iterations.
LATEST = 20


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
    low, high = torch_api.min_and_max(buffer)
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
    return FP16_MAX if rehearsing_half() else _largest(logits.dtype)


@lru_cache(maxsize=None)
def _largest(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).max


@dataclass(frozen=True)
class Forecast:
    """An overflow that the logits are heading for.

    Attributes:
        absmax: Largest |logit| of this iteration.
        usual: Its usual magnitude, the geometric mean of the last iterations.
        iterations_left: Until it passes 65504, if it goes on rising like this.
    """

    absmax: float
    usual: float
    iterations_left: int


class LogitTrend:
    """Extrapolates the magnitude of one layer's logits to the limit of FP16.

    Divergence makes logits grow by a factor per iteration, so their logarithm grows
    steadily. An exponential average over ``W`` iterations lags behind a steady rise of
    ``s`` per iteration by ``s * W``: the distance between now and the average, over
    ``W``, is the speed. One average is all the state there is; non-finite and zero
    magnitudes leave it alone.

    Args:
        horizon: A forecast is made if the limit is at most so many iterations away.
        floor: None is made below this magnitude. A softmax or sigmoid in FP32 has no
            use for logits beyond about 100 (:class:`HeadClampHook`'s default limit),
            and a new classifier may well grow towards that quickly.
    """

    def __init__(self, horizon: int, floor: float = USELESS_LOGIT) -> None:
        self.horizon = horizon
        self.floor = floor
        self._usual = 0.0  # log2
        self._seen = 0

    def add(self, absmax: float) -> Forecast | None:
        """Take one iteration's largest finite |logit|; returns a forecast or None."""
        if not (math.isfinite(absmax) and absmax > 0):
            return None
        level = math.log2(absmax)
        seen = min(self._seen, LATEST)
        usual = self._usual if self._seen else level
        rise = level - usual
        self._seen += 1
        self._usual = usual + rise / min(self._seen, LATEST)
        bits_left = max(0.0, math.log2(FP16_MAX) - level)
        # Half of them must be known before a distance to its average means anything.
        if absmax < self.floor or seen < LATEST // 2 or not rise > 0:
            return None
        left = bits_left * seen / rise
        if left > self.horizon:
            return None
        return Forecast(absmax, 2.0**usual, math.ceil(left))

    def state(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return dict(usual=self._usual, seen=self._seen)

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state` gave."""
        self._usual, self._seen = float(state["usual"]), int(state["seen"])
