"""What is wrong with ground-truth boxes and their masks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from typing import Any, TypeAlias

    import numpy.typing as npt

# In quotes: NumPy's types have no [] on Python 3.8.

Floats: TypeAlias = "npt.NDArray[np.floating[Any]]"
Codes: TypeAlias = "npt.NDArray[np.int8]"

# What can be wrong, in the order in which it is looked for, and the words for it.
FLAWS = {
    "not_finite": "not finite",
    "negative": "negative width or height",
    "zero": "zero width or height",
    "sub_pixel": "smaller than {min_size:g} pixel",
    "outside": "outside the image",
    "empty_mask": "a mask without a pixel",
}
NAMES = ("", *FLAWS)  # by the codes of box_flaws
_CODES = {name: code for code, name in enumerate(NAMES)}
EMPTY_MASK = _CODES["empty_mask"]

_FLAT = 1e-6  # square pixels: what rounding leaves of a polygon without an area


def box_flaws(
    boxes: Floats,
    sizes: Floats | None = None,
    min_size: float = 1.0,
    sides: Floats | None = None,
) -> Codes:
    """Why boxes can make a loss infinite or NaN, or teach nothing.

    Widths and heights are divided by, and their logarithm is taken (mmdetection#2999,
    #3315, #3394). Outside is a box of which no part is in the image. One that sticks
    out is sound: mosaics and affine transforms leave such boxes by design where they
    do not clip, and mmdet's own augmentations drop what is outside by this criterion.

    Args:
        boxes: ``(n, 4)``: x1, y1, x2, y2 in pixels.
        sizes: ``(n, 2)``: height and width of each box's image; NaN if not known.
        min_size: Smallest width and height in pixels that is taken for sound.
        sides: ``(n, 2)``: widths and heights, where they are known better than the
            difference of rounded corners.

    Returns:
        For each box the first flaw as an index into ``NAMES``; 0 if it is sound.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        if sides is None:
            sides = boxes[:, 2:] - boxes[:, :2]
        side = sides.min(1)
        codes = np.zeros(len(boxes), np.int8)
        if sizes is not None:
            beyond = (boxes[:, :2] >= sizes[:, ::-1]).any(1) | (boxes[:, 2:] <= 0).any(
                1
            )
            codes[beyond] = _CODES["outside"]
        codes[side < min_size] = _CODES["sub_pixel"]
        codes[side == 0] = _CODES["zero"]
        codes[side < 0] = _CODES["negative"]
        finite = np.isfinite(boxes).all(1) & np.isfinite(sides).all(1)
        codes[~finite] = _CODES["not_finite"]
    return codes


def flaw_words(name: str, min_size: float) -> str:
    """A flaw for a person."""
    return FLAWS[name].format(min_size=min_size)


def empty_masks(masks: Any, boxes: Floats) -> npt.NDArray[np.bool_]:
    """Which masks have no pixel, or no area.

    Args:
        masks: ``(n, height, width)``, or a list of polygons for each instance; anything
            else counts as full.
        boxes: ``(n, 4)``, finite: where to look first.
    """
    empty = np.zeros(len(boxes), np.bool_)
    if len(masks) != len(boxes):
        return empty
    if isinstance(masks, np.ndarray) and masks.ndim == 3 and all(masks.shape[1:]):
        for i, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
            # Nearly every mask has a pixel in the middle row of its box, so the whole
            # of it, a megabyte, is seldom read.
            row = min(max(int((y1 + y2) / 2), 0), masks.shape[1] - 1)
            middle = masks[i, row, max(int(x1), 0) : max(int(x2) + 1, 0)]
            empty[i] = not middle.any() and not masks[i].any()
    elif isinstance(masks, list):
        for i, polygons in enumerate(masks):
            empty[i] = all(is_flat(polygon) for polygon in polygons)
    return empty


def is_flat(polygon: Any) -> bool:
    """Whether a polygon ``x1, y1, x2, y2, ...`` has no area.

    One that crosses itself has, even where its signed parts add up to 0.
    """
    points = np.asarray(polygon, np.float64)
    x, y = points[::2], points[1::2]
    if len(x) < 3 or len(x) != len(y):
        return True
    area = x[:-1] @ y[1:] - x[1:] @ y[:-1] + x[-1] * y[0] - x[0] * y[-1]
    if abs(area) > _FLAT:
        return False
    x, y = x - x[0], y - y[0]
    far = np.argmax(x * x + y * y)
    return not (abs(x * y[far] - y * x[far]) > _FLAT).any()
