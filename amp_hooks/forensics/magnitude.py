"""The range of a tensor's values, as host numbers: measured after an incident only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor


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
    """Measure a floating-point or complex tensor of any shape; waits for the device.

    A complex one counts as its real and imaginary parts. One of a kind that cannot be
    measured (sparse, or of eight bits) counts as finite.
    """
    shape, dtype = tuple(tensor.shape), str(tensor.dtype).rsplit(".", 1)[-1]
    unknown = Magnitude(name, shape, dtype, 0.0, 0.0, 0, 0, 0)
    try:
        x = tensor.detach()
        x = torch.view_as_real(x.resolve_conj()) if x.is_complex() else x
        if not x.numel():
            return unknown
        finite = torch.isfinite(x)
        size = x.abs()
        low = torch.where(finite, size, torch.inf).min().double()
        high = torch.where(finite, size, 0.0).max().double()
        counts = [finite.sum(), x.isnan().sum(), (x == torch.inf).sum()]
        n, nan, inf = (int(count) for count in torch.stack(counts).tolist())
        absmin, absmax = torch.stack([low, high]).tolist()
    except (NotImplementedError, RuntimeError) as e:
        if isinstance(e, torch.cuda.OutOfMemoryError):
            raise
        return unknown
    neg_inf = x.numel() - n - nan - inf
    return Magnitude(
        name, shape, dtype, absmin if n else 0.0, absmax, nan, inf, neg_inf
    )


def magnitudes(named: Iterable[tuple[str, Tensor]]) -> list[Magnitude]:
    """Measure those of the tensors that can hold NaN."""
    return [
        magnitude(name, tensor)
        for name, tensor in named
        if tensor.is_floating_point() or tensor.is_complex()
    ]
