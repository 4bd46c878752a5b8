"""Copies of nested state in host memory."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..engine.tensors import map_tensors, named_tensors


class HostCopier:
    """Copies nested state to host memory in one go, dtypes and layouts kept.

    Tensors that share their memory, as those of a model's state dict and of a
    checkpoint made from it, are copied once. Copies from an accelerator are all queued
    before the one wait at the end.

    Args:
        pinned: Copy into page-locked memory, which is faster from CUDA devices. Where
            that cannot be had, ordinary memory does.

    Attributes:
        recycled: Bytes of an earlier copy that the next one can use.
    """

    def __init__(self, pinned: bool = False) -> None:
        self.pinned = pinned
        self.recycled = 0
        self._reusable: dict[tuple[Any, ...], list[Tensor]] = defaultdict(list)

    def recycle(self, tree: Any) -> None:
        """Let later copies use the memory of an earlier one, which nobody needs now."""
        self._reusable.clear()
        self.recycled = host_bytes(tree)
        for tensor in _distinct(t for _, t in named_tensors(tree)):
            self._reusable[_kind(tensor)].append(tensor)

    @torch.no_grad()
    def copy(self, tree: Any) -> Any:
        """Copy every tensor; containers are made anew, other values are shared."""
        copies: dict[tuple[Any, ...], Tensor] = {}
        devices = set()

        def copy_one(tensor: Tensor) -> Tensor:
            key = (tensor.device, _place(tensor), *_kind(tensor))
            if key not in copies:
                copies[key] = self._copy(tensor.detach())
                devices.add(tensor.device)
            return copies[key]

        copied = map_tensors(copy_one, tree)
        self.recycled = 0
        for device in devices:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
        return copied

    def _copy(self, tensor: Tensor) -> Tensor:
        if tensor.layout is not torch.strided:
            return tensor.to("cpu", copy=True)
        reusable = self._reusable.get(_kind(tensor))
        target = reusable.pop() if reusable else self._new(tensor)
        return target.copy_(tensor, non_blocking=target.is_pinned())

    def _new(self, tensor: Tensor) -> Tensor:
        pinned = self.pinned and tensor.device.type == "cuda"
        try:
            return torch.empty_like(tensor, device="cpu", pin_memory=pinned)
        except RuntimeError:  # page-locked memory is scarce
            return torch.empty_like(tensor, device="cpu")


def host_bytes(tree: Any) -> int:
    """Bytes that the tensors of nested state hold, shared memory counted once."""
    tensors = _distinct(t for _, t in named_tensors(tree))
    return sum(t.numel() * t.element_size() for t in tensors)


def _kind(tensor: Tensor) -> tuple[Any, ...]:
    strided = tensor.layout is torch.strided
    return tensor.dtype, tensor.shape, tensor.stride() if strided else None


def _distinct(tensors: Iterable[Tensor]) -> list[Tensor]:
    return list({(_place(t), *_kind(t)): t for t in tensors}.values())


def _place(tensor: Tensor) -> int:
    # A sparse one has no single place.
    return tensor.data_ptr() if tensor.layout is torch.strided else id(tensor)
