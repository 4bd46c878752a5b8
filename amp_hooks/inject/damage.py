"""Damage tensors on purpose, in elements that a seed chooses."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Change:
    """What happens to an element: it is set to a number, or multiplied by it."""

    number: float
    multiply: bool = False


def choose(n: int, count: int | None, seed: str) -> list[int] | None:
    """``count`` of ``n`` places; ``None`` for all of them.

    The same for the same seed, and no global random state is touched.
    """
    if count is None or count >= n:
        return None
    return random.Random(seed).sample(range(n), count)


def damage(t: Tensor, change: Change, places: Sequence[int] | None) -> Tensor:
    """A copy of ``t`` that differs in some elements.

    Differentiable: no gradient passes an element that was set, one that was multiplied
    passes it multiplied, the others as ever.

    Args:
        t: Floating-point tensor of any shape.
        change: A number too large for the dtype of ``t`` becomes infinite.
        places: Indices into the flattened tensor, or ``None`` for all of it.
    """
    if places is None:
        mask = torch.ones(t.shape, dtype=torch.bool, device=t.device)
    else:
        flat = torch.zeros(t.numel(), dtype=torch.bool)
        flat[list(places)] = True
        mask = flat.reshape(t.shape).to(t.device)
    if change.multiply:
        return torch.where(mask, t * change.number, t)
    # Rounded on the host: not every device knows float64.
    number = torch.tensor(change.number, dtype=torch.float64).to(t.dtype).to(t.device)
    return torch.where(mask, number, t)


class _Shown(torch.autograd.Function):
    """Shows a number in place of a tensor's values; multiplies its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shown: float, factor: Tensor) -> Tensor:
        ctx.save_for_backward(factor)
        return torch.full_like(x, shown)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (factor,) = ctx.saved_tensors
        return grad * factor, None, None


def damage_loss(loss: Any, change: Change) -> Any:
    """A loss, or a list of them that will be summed, with another value.

    Its gradient changes in proportion, as that of a loss which really has the value:
    NaN for NaN, not finite for an infinity. One that was 0 or not finite keeps its
    gradient where a finite number is shown.
    """
    parts = [loss] if isinstance(loss, Tensor) else list(loss)
    number = change.number
    if change.multiply:
        parts = [part * number for part in parts]
    else:
        total = torch.stack([part.detach().mean() for part in parts]).sum()
        factor = number / total
        if math.isfinite(number):
            usable = torch.isfinite(factor) & torch.isfinite(total)
            factor = torch.where(usable, factor, torch.ones_like(factor))
        else:
            factor = torch.full_like(total, number)
        share = number / len(parts)
        parts = [_Shown.apply(part, share, factor) for part in parts]  # type: ignore[no-untyped-call]
    return parts[0] if isinstance(loss, Tensor) else parts


BAD_BOXES = ("zero", "subpixel", "inverted", "nan", "outside")


def spoil_boxes(
    boxes: Tensor, how: str, rows: Sequence[int] | None, width: float
) -> Tensor:
    """A copy of boxes of which some are degenerate.

    Args:
        boxes: ``(n, 4)``: x1, y1, x2, y2 in pixels.
        how: One of ``BAD_BOXES``: no width; a side of 0.001 pixels; x1 and x2
            exchanged; NaN; to the right of the image.
        rows: Which; ``None`` for all.
        width: Of the image, in pixels.
    """
    boxes = boxes.clone()
    index = list(range(len(boxes)) if rows is None else rows)
    x1, y1, x2, y2 = boxes[index].unbind(-1)
    if how == "zero":
        x2 = x1
    elif how == "subpixel":
        x2, y2 = x1 + 1e-3, y1 + 1e-3
    elif how == "inverted":
        x1, x2 = x2, x1
    elif how == "nan":
        x1 = y1 = x2 = y2 = torch.full_like(x1, math.nan)
    else:
        x1, x2 = x1 + 2 * width, x2 + 2 * width
    boxes[index] = torch.stack([x1, y1, x2, y2], -1)
    return boxes
