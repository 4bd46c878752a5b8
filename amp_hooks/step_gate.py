"""Lets an optimizer step through, or does not."""

from __future__ import annotations

import math
from collections.abc import Callable

import mmengine.dist as dist
import torch
from torch import Tensor

from .core.missing_grads import has_gradient, why_no_gradient


class StepGate:
    """Stands before every optimizer step; :class:`StepTap` asks it.

    Args:
        names: Names of the model's parameters by ``id``.
        flags: Gives 0-d tensors of this forward pass, none of which is above 0 unless
            logits are not finite.
        missing: Called with a message when an optimizer has no gradient at all.

    Attributes:
        dropped: Optimizers whose accumulation window has been given up: its next step
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
        """The accumulation window begins anew."""
        self.dropped.clear()
        self.skipped.clear()

    def _message(self, name: str, params: list[Tensor]) -> str:
        why = why_no_gradient(params, self._names, name in self._detached)
        whose = f"optimizer {name}" if name else "the optimizer"
        return f"{whose} has no gradient to step with, because {why}"
