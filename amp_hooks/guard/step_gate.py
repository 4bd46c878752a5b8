"""Lets an optimizer step through, or does not."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Sequence

import mmengine.dist as dist
import torch
from torch import Tensor

from ..engine.patch import Guard, unguarded
from ..engine.sharded import NormsOfAllRanks
from ..engine.tensors import parameter_grad_norms
from ..errors import NoStepError
from .gradient_hooks import CleanedGradients

_SHOWN = 3


class StepGate:
    """Stands before every optimizer step; :class:`StepTap` asks it.

    Args:
        names: Names of the model's parameters by ``id``.
        flags: Gives 0-d tensors of this forward pass, all of them 0, or NaN where
            something in it was not finite that must be.
        missing: Called with a message when an optimizer has no gradient at all.
        owner: The hook whose it is.
        guarded: The same hook's.
        votes: There are several ranks and nothing averages their gradients: they agree
            on each step by a collective.
        sharded: Each rank has a part of each gradient: they agree by the norms of the
            whole, in one collective.

    Attributes:
        dropped: Optimizers whose accumulation has been given up: their next step
            is not taken.
        skipped: Such optimizers whose step was not taken in this iteration.
        on_backward: Called before each backward pass.
        cleaned: Gradients that hooks of others may clean.
    """

    def __init__(
        self,
        names: dict[int, str],
        flags: Callable[[], list[Tensor]],
        missing: Callable[[str], None],
        owner: object = None,
        guarded: Guard = unguarded,
        votes: bool = False,
        sharded: NormsOfAllRanks | None = None,
    ) -> None:
        self.owner = owner
        self._names = names
        self._flags = flags
        self._missing = missing
        self._votes, self._sharded = votes, sharded
        self._detached: set[str] = set()
        self.dropped: set[str] = set()
        self.skipped: set[str] = set()
        self.on_backward: list[Callable[[], None]] = []
        self.cleaned = CleanedGradients(guarded)
        self._factors: dict[str, Tensor] = {}  # of this accumulation: 1, or NaN
        self._smallest: dict[str, Tensor | None] = {}  # parameters, by optimizer

    def before_backward(
        self, name: str, params: list[Tensor], loss: Tensor
    ) -> Tensor | None:
        """The loss to propagate, or ``None`` if it leads nowhere.

        One that comes from a forward pass with values that must be finite and are not
        is multiplied by NaN, so that no gradient is finite, on any rank after DDP has
        averaged them, and the step is refused everywhere alike. Any other is multiplied
        by 1.0, which changes no bit. A loss that is NaN itself is left to its
        gradients: a term over no samples has none.
        """
        for call in self.on_backward:
            call()
        if not loss.requires_grad:
            self._detached.add(name)
            if dist.get_world_size() > 1:
                raise NoStepError(
                    f"{self._message(name, params)}. The other ranks wait for the "
                    "gradients of this one, so training cannot go on."
                )
            self._missing(self._message(name, params))
            return None
        self.cleaned.begin(params, self._names)
        flags, factor = self._flags(), None
        if flags:
            bad = functools.reduce(torch.add, [f.to(loss.device) for f in flags])
            factor = 1.0 + bad
            known = self._factors.get(name)
            self._factors[name] = factor if known is None else known * factor
        self.cleaned.before_backward(loss, factor)
        return loss if factor is None else loss * factor.to(loss.dtype)

    def before_step(self, name: str, params: list[Tensor]) -> Tensor | None:
        """Let one gradient know, if there is anything, however they were cleaned.

        Where no DDP averages gradients, it tells that to the other ranks as well. Where
        it does, this rank would be alone with it.

        Returns:
            The gradient norms of a sharded model; None: they are as they are here.
        """
        factor = self._factors.pop(name, None)
        if self._sharded is not None:
            norms, seen = self._sharded(params, factor)
            if (mine := self._smallest_gradient(name, params)) is not None:
                mine.mul_((seen + norms.amax() * 0).to(mine))  # by 1, or NaN
            return norms * seen
        if dist.get_world_size() > 1 and not self._votes:
            return None
        self._tell(name, params, factor)
        return None

    def _tell(self, name: str, params: list[Tensor], factor: Tensor | None) -> None:
        smallest = self._smallest_gradient(name, params)
        if smallest is None:
            return
        if self._votes:
            norms = parameter_grad_norms(params)
            local = smallest.new_ones(()) if factor is None else factor
            bad = ~torch.isfinite(local)
            if norms is not None:
                bad = bad | ~torch.isfinite(norms).all()
            bad = bad.to(torch.float32)
            dist.all_reduce(bad, "max")
            factor = torch.where(bad == 0, 1.0, math.nan)
        if factor is not None:
            smallest.mul_(factor.to(smallest))

    def _smallest_gradient(self, name: str, params: list[Tensor]) -> Tensor | None:
        """A dense one; the same parameter's as long as it has one."""
        known = self._smallest.get(name)
        if known is None or known.grad is None or known.grad.is_sparse:
            there = [p for p in params if p.grad is not None and p.grad.numel()]
            dense = [p for p in there if p.grad is not None and not p.grad.is_sparse]
            known = self._smallest[name] = min(dense, key=Tensor.numel, default=None)
        return None if known is None else known.grad

    def opens(self, name: str, params: list[Tensor]) -> bool:
        """Whether there is a step to take at all; nothing waits for the device."""
        if name in self.dropped:
            self.dropped.discard(name)
            self.skipped.add(name)
            self._factors.pop(name, None)
            return False
        # Of a sharded one this rank may have no part.
        if self._sharded is None and not has_gradient(params):
            self._missing(self._message(name, params))
            self._detached.discard(name)
            return False
        self._detached.discard(name)
        return True

    def forget(self) -> None:
        """The accumulation begins anew."""
        self.dropped.clear()
        self.skipped.clear()
        self._factors.clear()

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
