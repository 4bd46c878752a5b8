"""Steps whose gradients are made finite between the loss and the optimizer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Callable

import torch
from mmengine.optim import OptimWrapper
from torch import Tensor

from .of_others import attribute
from .patch import replace
from .tensors import parameter_grad_norms


def cleans_gradients(wrapper: OptimWrapper) -> bool:
    """Whether its ``step`` may make gradients finite.

    Clipping by value makes large ones of infinities, and a ``step`` that is not
    MMEngine's may do anything (``nan_to_num_``).
    """
    if attribute(wrapper, "clip_func", None) is torch.nn.utils.clip_grad_value_:
        return True
    return has_own_step(wrapper)


def has_own_step(wrapper: OptimWrapper) -> bool:
    """Whether its class is one of the user's that steps in its own way."""
    module = str(getattr(type(wrapper).step, "__module__", ""))
    return not module.startswith(("mmengine.", "amp_hooks."))


@contextmanager
def judged_late(wrapper: OptimWrapper, judge: Callable[[], bool]) -> Iterator[None]:
    """The optimizer takes its step only if ``judge`` lets it, asked right before."""
    with ExitStack() as stack:
        step: Callable[..., Any] = wrapper.optimizer.step

        def judged(*args: Any, **kwargs: Any) -> Any:
            return step(*args, **kwargs) if judge() else None

        replace(wrapper.optimizer, "step", judged, stack)
        yield


def late_norms(
    params: list[Tensor], early: Tensor, wait: bool
) -> tuple[Tensor | list[float], bool]:
    """Norms of the gradients as the optimizer gets them.

    Args:
        params: The optimizer's.
        early: Norms before that; 0 of parameters without a gradient. If no other is
            finite, neither was the loss, or the forward pass was refused; then they are
            what counts.
        wait: Return numbers.

    Returns:
        The norms, and whether they are known to have been made finite.
    """
    late = parameter_grad_norms(params)
    if late is None or late.shape != early.shape:
        late = early
    if not wait:
        known = torch.isfinite(early) & (early != 0)
        return torch.where(known.any(), late, early), False
    before, after = torch.stack([early, late]).tolist()  # the guard's one wait
    if not any(norm and math.isfinite(norm) for norm in before):
        return list(before), False
    cleaned = math.isfinite(sum(after)) and not math.isfinite(sum(before))
    return list(after), cleaned


def told_cleaned(wrapper: OptimWrapper) -> str:
    """For the log."""
    own = has_own_step(wrapper)
    by = f"{type(wrapper).__name__}.step" if own else "clip_grad by value"
    return (
        f"gradients that are not finite are made finite before the step, by {by}. The "
        "step is taken, as without amp_hooks."
    )
