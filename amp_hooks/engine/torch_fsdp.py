"""What is private of FullyShardedDataParallel and activation checkpointing."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils import checkpoint

_INSIDE = ("_fsdp_wrapped_module", "_checkpoint_wrapped_module")


def own_name(name: str) -> str:
    """The name of a module or tensor as if nothing of torch were wrapped around any."""
    return ".".join(part for part in name.split(".") if part not in _INSIDE)


def wrapped_in(module: nn.Module) -> nn.Module | None:
    """The model's own module that this one is but a wrapper of; None if it is not."""
    children = module.named_children()
    return next((child for name, child in children if name in _INSIDE), None)


def keeps_parameters(fsdp: Any) -> bool:
    """Whether a sharded model has parameters with names, and not one flat vector."""
    return bool(fsdp._use_orig_params)


@torch.no_grad()  # with gradients SHARD_GRAD_OP leaves parameters whole in a forward
def reshard(fsdp: Any) -> None:
    """Let each parameter be this rank's part again, and forget the whole ones.

    After a forward pass without a backward one, in an evaluation say, or one that
    raised, they are still there: what is written then goes into a copy, or into the
    part while the next forward reads the copy. All ranks must do it together, for what
    has been forgotten is gathered again.
    """
    for module in type(fsdp).fsdp_modules(fsdp):
        for handle in _handles_of(module):
            if handle is None or not handle.uses_sharded_strategy:
                continue
            if hasattr(handle.flat_param, "_local_shard"):  # it has been called
                handle.reshard(True)
                handle.post_reshard()
                handle._prefetched = False


def _handles_of(module: Any) -> list[Any]:
    if hasattr(module, "_handles"):  # before torch 2.1
        return list(module._handles)
    return [module._handle]


def ends_recomputation(error: BaseException) -> bool:
    """Whether torch has raised it on purpose, within what is computed once more.

    Activation checkpointing leaves a forward pass as soon as it has what the backward
    pass needs, which may be in the middle of a function of ours.
    """
    kinds = getattr(checkpoint, "_StopRecomputationError", ())  # since torch 2.1
    return isinstance(error, kinds)
