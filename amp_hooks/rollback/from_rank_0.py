"""Nested state of rank 0, brought to all ranks."""

from __future__ import annotations

import pickle
from typing import Any

import mmengine.dist as dist
import torch
from torch import Tensor

from ..engine.tensors import map_tensors, named_tensors

_PIECE = 64 * 2**20  # bytes: what a device has free may be little


def from_rank_0(tree: Any) -> Any:
    """What rank 0 has; a collective, to be called on every rank.

    It goes the way that gradients go, in pieces, by a device where that is NCCL's.

    Args:
        tree: On rank 0 nested dicts, lists and tuples of host tensors and other values,
            or None; nobody looks at it elsewhere.

    Returns:
        On rank 0 the same object, on the others a copy without values of dicts that
        cannot be pickled.
    """
    if dist.get_world_size() == 1:
        return tree
    main = dist.is_main_process()
    skeleton = [map_tensors(_shape_of, _sendable(tree)) if main else None]
    dist.broadcast_object_list(skeleton, src=0)
    mine = tree if main else map_tensors(_empty, skeleton[0])
    device = dist.get_comm_device()
    for (_, shape), (_, tensor) in zip(named_tensors(skeleton[0]), named_tensors(mine)):
        if shape.is_meta and tensor.numel():
            _broadcast(tensor, main, device)
    return mine


def can_be_sent(tree: Any) -> bool:
    """Whether all but its tensors can be pickled."""
    try:
        pickle.dumps(map_tensors(_shape_of, tree))
    except Exception:
        return False
    return True


def _sendable(tree: Any) -> Any:
    if can_be_sent(tree):
        return tree
    if isinstance(tree, dict):
        nested = (dict, list, tuple)
        return {
            key: _sendable(value)
            for key, value in tree.items()
            if isinstance(value, nested) or can_be_sent(value)
        }
    # Of a list the places are kept.
    return [_sendable(v) for v in tree] if isinstance(tree, (list, tuple)) else None


@torch.no_grad()
def _broadcast(tensor: Tensor, main: bool, device: torch.device) -> None:
    # Bytes: not every backend knows every dtype.
    flat = tensor.contiguous().view(-1).view(torch.uint8)
    for piece in flat.split(_PIECE):
        on_device = piece.to(device)
        dist.broadcast(on_device, src=0)
        if not main:
            piece.copy_(on_device)
    if not main:
        tensor.copy_(flat.view(tensor.dtype).view(tensor.shape))


def _shape_of(tensor: Tensor) -> Tensor:
    # One that is not strided travels as it is.
    return tensor.to("meta") if tensor.layout is torch.strided else tensor


def _empty(shape: Tensor) -> Tensor:
    return torch.empty_like(shape, device="cpu") if shape.is_meta else shape
