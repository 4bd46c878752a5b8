"""The model, the optimizer wrappers and the processes of a run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import mmengine.dist as dist
import torch
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from torch import Tensor, nn

from . import private
from .condition import Condition
from .named import named_buffers
from .of_others import attribute


def bare_model(runner: Runner) -> nn.Module:
    """The model without DDP around it."""
    model = runner.model
    return model.module if is_model_wrapper(model) else model


def left_out_buffers(model: nn.Module, state: dict[str, Any]) -> dict[str, Any]:
    """Buffers that a checkpoint leaves out; ``state`` is the model's state dict."""
    return {name: b for name, b in named_buffers(model) if name not in state}


def iter_wrappers(optim_wrapper: Any) -> Iterator[tuple[str, OptimWrapper]]:
    """Each ``(name, wrapper)``; a single optimizer has the name ``''``."""
    if isinstance(optim_wrapper, OptimWrapperDict):
        return iter(optim_wrapper.items())
    return iter([("", optim_wrapper)])


def trained_parameters(wrapper: OptimWrapper) -> list[Tensor]:
    """The optimizer's parameters, in its own order."""
    return [p for group in wrapper.optimizer.param_groups for p in group["params"]]


def accumulating(optim_wrapper: Any) -> bool:
    """Whether gradients are waiting for an optimizer step."""
    for _, wrapper in iter_wrappers(optim_wrapper):
        if wrapper.inner_count % private.accumulative_counts(wrapper) != 0:
            return True
    return False


def known_rates(groups: Iterable[Mapping[str, Any]]) -> list[float] | None:
    """The learning rates of param groups; None if one lives on a GPU: to read it waits.

    Many configs have a group for every parameter, so this is asked of hundreds.
    """
    rates = [group["lr"] for group in groups if group.get("lr") is not None]
    if {*map(type, rates)} <= {float}:
        return rates
    if any(isinstance(lr, Tensor) and lr.device.type != "cpu" for lr in rates):
        return None
    return [float(lr) for lr in rates]


def active_scaler(wrapper: OptimWrapper) -> Any:
    """The wrapper's GradScaler, or ``None`` if there is none or it is disabled."""
    scaler = attribute(wrapper, "loss_scaler")
    return scaler if scaler is not None and scaler.is_enabled() else None


def clip_max_norm(wrapper: OptimWrapper) -> float | None:
    """The L2 norm to which ``clip_grad`` scales down, if it does; None by value."""
    clip = wrapper.clip_grad_kwargs
    if not clip or wrapper.grad_name != "grad_norm" or clip.get("norm_type", 2) != 2:
        return None
    return float(clip["max_norm"])


def gradients_are_shared(runner: Runner) -> bool:
    """Whether all ranks step with the same gradients, if there are several."""
    if dist.get_world_size() == 1:
        return True
    own = getattr(runner.model, "parameters_to_ignore", None)  # DDP's
    return is_model_wrapper(runner.model) and not own


def any_rank(flag: bool) -> bool:
    """Whether the flag is set on any rank. A collective: call it on every rank."""
    if dist.get_world_size() == 1:
        return flag
    votes = torch.tensor(float(flag), dtype=torch.float32)
    dist.all_reduce(votes, "max")
    return bool(votes.item())


def of_all_ranks(condition: Condition) -> Condition:
    """The earliest illness that a rank knows of, as of which all of them must act.

    A collective: call it on every rank.
    """
    if dist.get_world_size() == 1:
        return condition
    everyone: list[Condition] = dist.all_gather_object(condition)
    sick = [one for one in everyone if not one.well]
    return min(sick, key=lambda one: one.since or 0) if sick else everyone[0]
