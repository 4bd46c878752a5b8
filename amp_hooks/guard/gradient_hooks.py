"""Gradients that somebody else replaces before anyone can judge them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..engine import private
from ..engine.patch import Guard, unguarded


class CleanedGradients:
    """Stands around the hooks that users register on parameters.

    Many training scripts put ``nan_to_num`` on every gradient. The step is then taken
    with zeros for NaN, after a forward pass that has ruined BatchNorm. What the forward
    pass knows of itself must reach the optimizer all the same, on every rank: so these
    gradients are multiplied by 1, or NaN, behind the user's hook.

    A loss that is not finite counts where its gradients were not before they were
    cleaned. Gradients that are not finite under a finite loss are the user's business.

    Args:
        guarded: Bears what goes wrong here.

    Attributes:
        names: Parameters with such hooks.
    """

    def __init__(self, guarded: Guard = unguarded) -> None:
        self._guarded = guarded
        self.names: list[str] = []
        self._handles: list[Callable[[], None]] = []
        self._factor: Tensor | None = None
        self._loss_finite: Tensor | None = None
        self._begun = False

    def begin(self, params: Sequence[Tensor], names: dict[int, str]) -> None:
        """Look for hooks at the first backward pass, when all others have begun."""
        for p in private.with_gradient_hooks(params):
            if not p.requires_grad or names.get(id(p)) in self.names:
                continue
            self.names.append(names.get(id(p), "?"))
            self._surround(p)

    def before_backward(self, loss: Tensor, factor: Tensor | None) -> None:
        """What the gradients of this backward pass are to be multiplied by."""
        if self.names:
            self._factor = factor
            self._loss_finite = torch.isfinite(loss.detach()).all()

    def close(self) -> None:
        """Take the hooks away."""
        while self._handles:
            self._handles.pop()()
        self.names.clear()
        self._factor = self._loss_finite = None

    def _surround(self, p: Tensor) -> None:
        raw: list[Tensor] = []

        def before(grad: Tensor) -> None:
            if not grad.is_sparse:
                raw[:] = [torch.isfinite(grad.detach()).all()]

        def after(grad: Tensor) -> Tensor:
            if self._loss_finite is None or grad.is_sparse:
                return grad
            fine = self._loss_finite.to(grad.device)
            if raw:
                fine = fine | raw.pop()
            factor = torch.where(fine, 1.0, math.nan)
            if self._factor is not None:
                factor = factor * self._factor.to(grad.device)
            return grad * factor.to(grad.dtype)

        first = p.register_hook(self._guarded(before))
        last = p.register_hook(self._guarded(after))
        private.call_first(p, first.id)
        self._handles += [first.remove, last.remove]
