"""The buffers that a forward pass may write, found again in microseconds."""

from __future__ import annotations

from collections.abc import Sequence
from operator import is_
from typing import NamedTuple

import torch
from torch import Tensor, nn

from . import private
from .named import named_modules


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
        self._modules = [
            (path, module, buffers, private.is_norm(module))
            for path, module in named_modules(model)
            if (buffers := private.buffers_of(module))
        ]
        self._kept: list[LiveBuffer] = []
        self._tensors: list[Tensor | None] = []
        self._place: tuple[list[int], list[int]] | None = None

    def now(self, memory: bool = True) -> list[LiveBuffer]:
        """Those that there are; the same list as long as they are the same.

        Args:
            memory: See as well whether one lies elsewhere than before; if not, that is
                seen the next time. A model may have hundreds.
        """
        tensors: list[Tensor | None] = []
        for _, module, buffers, norm in self._modules:
            # Frozen BatchNorm, which most detectors have, updates nothing.
            if not norm or module.training:
                tensors += buffers.values()
        same = len(tensors) == len(self._tensors)
        same = same and all(map(is_, tensors, self._tensors))
        if same and not memory:
            return self._kept
        place = _place([t for t in tensors if t is not None])
        if not same or place is None or place != self._place:
            self._tensors, self._place = tensors, place
            self._kept = [
                LiveBuffer(f"{path}.{name}" if path else name, module, name, t, norm)
                for path, module, buffers, norm in self._modules
                if not norm or module.training
                for name, t in buffers.items()
                if t is not None
            ]
        return self._kept


def _place(tensors: Sequence[Tensor]) -> tuple[list[int], list[int]] | None:
    """Where they are and how many values they have, if all have memory of their own."""
    try:
        return [t.data_ptr() for t in tensors], [t.numel() for t in tensors]
    except RuntimeError:  # a sparse one
        return None


def is_flat(tensor: Tensor) -> bool:
    """Whether its values lie one behind the other, so that it can be seen as 1-d."""
    plain = tensor.layout is torch.strided and not tensor.is_quantized
    return plain and not tensor.is_nested and tensor.is_contiguous()


def flat_views(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Each as 1-d, in the same memory; they must be flat."""
    return [t.detach().view(-1) for t in tensors]
