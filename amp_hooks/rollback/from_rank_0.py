"""Nested state of rank 0, brought to all ranks."""

from __future__ import annotations

from typing import Any

import mmengine.dist as dist
import torch
from torch import Tensor

from ..engine.tensors import map_tensors, named_tensors

_GROUPS: dict[Any, Any] = {}


def from_rank_0(tree: Any) -> Any:
    """What rank 0 has; a collective, to be called on every rank.

    It goes from host to host (gloo), whatever training communicates with, one tensor
    after the other: no rank holds more than one copy of its own.

    Args:
        tree: On rank 0 nested dicts, lists and tuples of host tensors and other values,
            or None; nobody looks at it elsewhere.

    Returns:
        On rank 0 the same object, on the others a copy.
    """
    if dist.get_world_size() == 1:
        return tree
    group, main = _hosts(), dist.is_main_process()
    skeleton = [map_tensors(_shape_of, tree) if main else None]
    torch.distributed.broadcast_object_list(skeleton, src=0, group=group)
    mine = tree if main else map_tensors(_empty, skeleton[0])
    for (_, shape), (_, tensor) in zip(named_tensors(skeleton[0]), named_tensors(mine)):
        if shape.is_meta and tensor.numel():
            # Bytes: gloo does not know every dtype.
            flat = tensor.contiguous().view(-1).view(torch.uint8)
            torch.distributed.broadcast(flat, src=0, group=group)
            if not main:
                tensor.copy_(flat.view(tensor.dtype).view(tensor.shape))
    return mine


def _shape_of(tensor: Tensor) -> Tensor:
    # One that is not strided travels as it is.
    return tensor.to("meta") if tensor.layout is torch.strided else tensor


def _empty(shape: Tensor) -> Tensor:
    return torch.empty_like(shape, device="cpu") if shape.is_meta else shape


def _hosts() -> Any:
    """Of the present process group; made once, on every rank at the same place."""
    world = torch.distributed.group.WORLD
    if world not in _GROUPS:
        _GROUPS.clear()
        _GROUPS[world] = torch.distributed.new_group(backend="gloo")
    return _GROUPS[world]
