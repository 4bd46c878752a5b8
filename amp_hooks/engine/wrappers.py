"""A run's optimizer wrappers, their scalers and their parameters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch import Tensor

from . import private


def iter_wrappers(optim_wrapper: Any) -> Iterator[tuple[str, OptimWrapper]]:
    """Yield ``(name, wrapper)``; a single optimizer has the name ``''``."""
    if isinstance(optim_wrapper, OptimWrapperDict):
        yield from optim_wrapper.items()
    else:
        yield "", optim_wrapper


def trained_parameters(wrapper: OptimWrapper) -> list[Tensor]:
    """The optimizer's parameters, in its own order."""
    return [p for group in wrapper.optimizer.param_groups for p in group["params"]]


def accumulating(optim_wrapper: Any) -> bool:
    """Whether gradients are waiting for an optimizer step."""
    return any(
        wrapper.inner_count % private.accumulative_counts(wrapper) != 0
        for _, wrapper in iter_wrappers(optim_wrapper)
    )


def active_scaler(wrapper: OptimWrapper) -> Any:
    """The wrapper's GradScaler, or ``None`` if there is none or it is disabled."""
    scaler = getattr(wrapper, "loss_scaler", None)
    return scaler if scaler is not None and scaler.is_enabled() else None


def clip_max_norm(wrapper: OptimWrapper) -> float | None:
    """The L2 norm to which ``clip_grad`` scales down, if it does; None by value."""
    clip = wrapper.clip_grad_kwargs
    if not clip or wrapper.grad_name != "grad_norm" or clip.get("norm_type", 2) != 2:
        return None
    return float(clip["max_norm"])
