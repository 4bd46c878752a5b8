"""How far a magnitude is from FP16's largest number."""

from __future__ import annotations

import math

FP16_MAX = 65504.0  # the largest finite half-precision number
# Softmax and sigmoid in FP32 have no use for larger logits: a sigmoid is 0 or 1 to FP32
# precision beyond about 17, a softmax beyond about 104.
USELESS_LOGIT = 100.0


def headroom_bits(absmax: float, limit: float = FP16_MAX) -> float:
    """Doublings left before ``absmax`` exceeds ``limit``: log2(limit / absmax).

    Negative once beyond it. Magnitudes below 1/256 count as that, so that the
    headroom of logits that are all 0 is a number. Infinite ones have -inf.
    """
    if math.isinf(absmax):
        return -math.inf
    return math.log2(limit / max(absmax, 2.0**-8))
