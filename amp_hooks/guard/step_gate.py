"""Lets an optimizer step through, or does not."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence

import mmengine.dist as dist
import torch
from torch import Tensor

_SHOWN = 3


class StepGate:
    """Stands before every optimizer step; :class:`StepTap` asks it.

    Args:
        names: Names of the model's parameters by ``id``.
        flags: Gives 0-d tensors of this forward pass, none of which is above 0 unless
            logits are not finite.
        missing: Called with a message when an optimizer has no gradient at all.

    Attributes:
        dropped: Optimizers whose accumulation has been given up: their next step
            is not taken.
        skipped: Such optimizers whose step was not taken in this iteration.
        on_backward: Called before each backward pass.
    """

    def __init__(
        self,
        names: dict[int, str],
        flags: Callable[[], list[Tensor]],
        missing: Callable[[str], None],
    ) -> None:
        self._names = names
        self._flags = flags
        self._missing = missing
        self._detached: set[str] = set()
        self.dropped: set[str] = set()
        self.skipped: set[str] = set()
        self.on_backward: list[Callable[[], None]] = []

    def before_backward(
        self, name: str, params: list[Tensor], loss: Tensor
    ) -> Tensor | None:
        """The loss to propagate, or ``None`` if it leads nowhere.

        A loss that is not finite, or comes from logits that are not, is multiplied by
        NaN, so that no gradient is finite, on any rank after DDP has averaged them,
        and the step is refused everywhere alike. A finite loss is multiplied by 1.0,
        which changes no bit.
        """
        for call in self.on_backward:
            call()
        if not loss.requires_grad:
            self._detached.add(name)
            if dist.get_world_size() > 1:
                raise RuntimeError(
                    f"{self._message(name, params)}. The other ranks wait for the "
                    "gradients of this one, so training cannot go on."
                )
            self._missing(self._message(name, params))
            return None
        finite = torch.isfinite(loss.detach()).all()
        if flags := self._flags():
            finite &= torch.stack([f.to(loss.device) for f in flags]).sum() == 0
        return loss * torch.where(finite, 1.0, math.nan).to(loss.dtype)

    def opens(self, name: str, params: list[Tensor]) -> bool:
        """Whether there is a step to take at all; nothing waits for the device."""
        if name in self.dropped:
            self.dropped.discard(name)
            self.skipped.add(name)
            return False
        if not has_gradient(params):
            self._missing(self._message(name, params))
            self._detached.discard(name)
            return False
        self._detached.discard(name)
        return True

    def forget(self) -> None:
        """The accumulation begins anew."""
        self.dropped.clear()
        self.skipped.clear()

    def _message(self, name: str, params: list[Tensor]) -> str:
        why = why_no_gradient(params, self._names, name in self._detached)
        whose = f"optimizer {name}" if name else "the optimizer"
        return f"{whose} has no gradient to step with, because {why}"


def has_gradient(params: Sequence[Tensor]) -> bool:
    """Whether any of them has one."""
    return any(p.grad is not None for p in params)


def why_no_gradient(
    params: Sequence[Tensor], names: dict[int, str], detached: bool
) -> str:
    """Say in plain words why none of them has a gradient.

    Args:
        params: The optimizer's parameters; none has a gradient.
        names: Names of the model's parameters by ``id``.
        detached: The loss itself does not require a gradient.
    """
    inside = [names[id(p)] for p in params if id(p) in names]
    trainable = [names[id(p)] for p in params if id(p) in names and p.requires_grad]
    if not inside:
        return (
            f"none of its {len(params)} parameters belongs to the model: the model, or "
            "that part of it, was built or replaced after the optimizer. Build the "
            "optimizer last"
        )
    if not trainable:
        return (
            f"all of its parameters are frozen ({_some(inside)}): requires_grad is "
            "False. Unfreeze some, or leave this optimizer out"
        )
    if detached:
        return (
            f"the loss is detached from its parameters ({_some(trainable)}): it does "
            "not require a gradient. Look for .detach(), .item() or torch.no_grad() on "
            "the way from the model's output to the loss"
        )
    return (
        f"the loss does not depend on its parameters ({_some(trainable)}): the "
        "branches that hold them were not used in this iteration"
    )


def _some(names: Collection[str]) -> str:
    shown = ", ".join(list(names)[:_SHOWN])
    return shown + (f", {len(names)} in all" if len(names) > _SHOWN else "")
