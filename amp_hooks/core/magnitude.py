"""The range of a tensor's values, as host numbers: for after a fault, not before."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .finite import named_tensors


class Magnitude(NamedTuple):
    """What is known of one tensor.

    Attributes:
        name: Which one, such as ``weight``, ``input[0]`` or ``output``.
        shape: Its shape.
        dtype: Its dtype, without ``torch.``.
        absmin: Smallest magnitude over the finite values; 0.0 if there is none.
        absmax: Largest.
        nan: How many values are NaN.
        inf: How many are +inf.
        neg_inf: How many are -inf.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    absmin: float
    absmax: float
    nan: int
    inf: int
    neg_inf: int

    @property
    def finite(self) -> bool:
        """Whether all values are."""
        return not (self.nan or self.inf or self.neg_inf)

    @property
    def only_masked(self) -> bool:
        """Whether the only values that are not finite are -inf.

        That is how positions are masked on purpose, before a softmax for one.
        """
        return bool(self.neg_inf) and not (self.nan or self.inf)


@torch.no_grad()
def magnitude(name: str, tensor: Tensor) -> Magnitude:
    """Measure a floating-point tensor of any shape; waits for the device once."""
    x = tensor.detach()
    dtype = str(x.dtype).rsplit(".", 1)[-1]
    if not x.numel():
        return Magnitude(name, tuple(x.shape), dtype, 0.0, 0.0, 0, 0, 0)
    finite = torch.isfinite(x)
    size = x.abs()
    low = torch.where(finite, size, torch.inf).min().double()
    high = torch.where(finite, size, 0.0).max().double()
    counts = [finite.sum(), x.isnan().sum(), (x == torch.inf).sum()]
    n, nan, inf = (int(count) for count in torch.stack(counts).tolist())
    absmin, absmax = torch.stack([low, high]).tolist()
    return Magnitude(
        name,
        tuple(x.shape),
        dtype,
        absmin if n else 0.0,
        absmax,
        nan,
        inf,
        x.numel() - n - nan - inf,
    )


def magnitudes(tree: Any, prefix: str) -> list[Magnitude]:
    """Measure every floating-point tensor in nested dicts, lists and tuples."""
    return [
        magnitude(name, tensor)
        for name, tensor in named_tensors(tree, prefix)
        if tensor.is_floating_point()
    ]
