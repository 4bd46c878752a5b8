"""What is wrong with a ground-truth box."""

from __future__ import annotations

import math
from collections.abc import Sequence


def box_flaw(
    box: Sequence[float], size: tuple[float, float] | None = None, min_size: float = 1.0
) -> str:
    """Why a box can make a loss infinite or NaN; '' if nothing is wrong with it.

    Boxes of zero or sub-pixel size are divided by, and their logarithm is taken
    (mmdetection#2999, #3315, #3394).

    Args:
        box: ``(x1, y1, x2, y2)`` in pixels.
        size: Height and width of the image, if known.
        min_size: Smallest width and height in pixels that is taken for sound.
    """
    x1, y1, x2, y2 = box
    if not all(math.isfinite(v) for v in box):
        return "not finite"
    width, height = x2 - x1, y2 - y1
    if width < 0 or height < 0:
        return "negative width or height"
    if width == 0 or height == 0:
        return "zero width or height"
    if width < min_size or height < min_size:
        return f"smaller than {min_size:g} pixel"
    if size is not None and (x1 >= size[1] or y1 >= size[0] or x2 <= 0 or y2 <= 0):
        return "outside the image"
    return ""
