"""The buffers that a forward pass may write, found again in microseconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from . import private


class LiveBuffer(NamedTuple):
    """A buffer of a model as it is at present.

    Attributes:
        path: Its name in the model.
        module: Whose it is.
        name: Its name there.
        tensor: What it is at present.
        of_norm: The module is a normalisation layer, which writes it in training.
    """

    path: str
    module: nn.Module
    name: str
    tensor: Tensor
    of_norm: bool


class LiveBuffers:
    """Knows the buffers of a model, all but those of frozen normalisation layers.

    Training may replace a buffer, or its memory, and freeze and thaw layers; that is
    looked at, and nothing more is done as long as all is as it was.

    Args:
        model: Whose buffers.
    """

    def __init__(self, model: nn.Module) -> None:
        self._slots = [
            (path, module, private.buffers_of(module), name, private.is_norm(module))
            for path, module in model.named_modules()
            for name in private.buffers_of(module)
        ]
        self._kept: list[LiveBuffer] = []
        self._place: list[Any] | None = None

    def now(self) -> list[LiveBuffer]:
        """Those that there are; the same list as long as they are the same."""
        tensors = [
            buffers.get(name)
            for _, module, buffers, name, norm in self._slots
            # Frozen BatchNorm, which most detectors have, updates nothing.
            if not norm or module.training
        ]
        try:
            place = [
                None if t is None else (id(t), t.data_ptr(), t.shape) for t in tensors
            ]
        except RuntimeError:  # a sparse one has no memory of its own
            place = None
        if place is None or place != self._place:
            self._place = place
            self._kept = [
                LiveBuffer(f"{path}.{name}" if path else name, module, name, t, norm)
                for path, module, buffers, name, norm in self._slots
                if (not norm or module.training)
                and (t := buffers.get(name)) is not None
            ]
        return self._kept


def is_flat(tensor: Tensor) -> bool:
    """Whether its values lie one behind the other, so that it can be seen as 1-d."""
    return tensor.layout is torch.strided and tensor.is_contiguous()


def flat_views(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Each as 1-d, in the same memory; they must be flat."""
    return [t.detach().view(-1) for t in tensors]
