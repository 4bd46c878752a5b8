"""Keep copies of tensors on their device and put them back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class SavedTensors:
    """Copies of tensors; nothing waits for the device.

    Attributes:
        copies: As last saved; overwritten by the next save.
    """

    def __init__(self) -> None:
        self.copies: list[Tensor] = []

    @torch.no_grad()
    def save(self, tensors: Sequence[Tensor]) -> None:
        """Copy them. Memory is allocated only if they are others than before."""
        if not _alike(tensors, self.copies):
            self.copies = [torch.empty_like(t) for t in tensors]
        if tensors:
            torch._foreach_copy_(self.copies, list(tensors))

    @torch.no_grad()
    def restore(self, tensors: Sequence[Tensor]) -> None:
        """Write the copies into ``tensors``, which are those that were saved."""
        if tensors:
            torch._foreach_copy_(list(tensors), self.copies)


def _alike(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    return len(a) == len(b) and all(
        x.shape == y.shape and x.dtype == y.dtype and x.device == y.device
        for x, y in zip(a, b)
    )
