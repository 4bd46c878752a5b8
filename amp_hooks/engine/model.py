"""The model of a run, and what of it each process has."""

from __future__ import annotations

from typing import Any

from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn


def bare_model(runner: Runner) -> nn.Module:
    """The model without DDP around it."""
    model = runner.model
    return model.module if is_model_wrapper(model) else model


def refuse_sharded(hook: object, runner: Runner) -> None:
    """Refuse a model of which each rank has a part of the gradients only."""
    kind = type(runner.model).__name__
    if "FullySharded" in kind or kind == "DeepSpeedEngine":
        raise NotImplementedError(
            f"{type(hook).__name__} cannot work with a sharded model ({kind}); use "
            "MMDistributedDataParallel, or take it out of custom_hooks."
        )


def left_out_buffers(model: nn.Module, state: dict[str, Any]) -> dict[str, Any]:
    """Buffers that a checkpoint leaves out; ``state`` is the model's state dict."""
    return {name: b for name, b in model.named_buffers() if name not in state}
