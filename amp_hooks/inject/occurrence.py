"""One injected fault in one iteration, and what the kinds of faults share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from typing import Any

import torch
from mmengine.runner import Runner
from torch import Tensor, nn

from ..engine.averaging import ema_hooks
from ..engine.checks import match_names
from ..engine.named import named_buffers, named_modules, named_parameters
from ..engine.run import bare_model
from .damage import choose, damage
from .fault_spec import Fault
from .fault_table import KINDS


class Occurrence:
    """One fault in one iteration.

    Args:
        runner: The run that is damaged.
        fault: What is done to it.
        seed: Chooses the elements.
        on_happened: Called with the occurrence as soon as it has happened.

    Attributes:
        iter: The iteration.
        hits: Names of what was hit.
    """

    def __init__(
        self,
        runner: Runner,
        fault: Fault,
        seed: str,
        on_happened: Callable[[Occurrence], None],
    ) -> None:
        self.runner, self.fault, self.iter = runner, fault, runner.iter
        self.hits: list[str] = []
        self._seed, self._on_happened, self._has_happened = seed, on_happened, False

    def hit(self, name: str) -> None:
        """Remember what was hit."""
        if name not in self.hits:
            self.hits.append(name)

    def tell(self) -> None:
        """Report it, once, if it happened."""
        if self.hits and not self._has_happened:
            self._has_happened = True
            self._on_happened(self)

    def places(self, n: int, name: str) -> list[int] | None:
        """Which of ``n`` elements of what has this name are hit."""
        return choose(n, self.fault.count, f"{self._seed}/{name}")

    def damaged(self, t: Tensor, name: str) -> Tensor:
        """The tensor with the fault in it, out of place."""
        if not t.is_floating_point() or not t.numel():
            return t
        self.hit(name)
        return damage(t, self.fault.parsed, self.places(t.numel(), name))

    def damage(self, t: Tensor, name: str) -> None:
        """Put the fault into the tensor itself."""
        with torch.no_grad():
            t.copy_(self.damaged(t, name))

    def matching(self, named: Iterator[tuple[str, Any]]) -> list[tuple[str, Any]]:
        """Those that ``where`` names."""
        return [
            (name, thing)
            for name, thing in named
            if any(fnmatchcase(name, pattern) for pattern in self.fault.where)
        ]


def ema_models(runner: Runner) -> list[nn.Module]:
    """The averaged models, their parameters named as the model's own."""
    return [hook.ema_model.module for hook in ema_hooks(runner)]


def expected_names(owner: str, fault: Fault, runner: Runner) -> list[str]:
    """What the fault is going to hit, as far as that is known before training.

    Raises:
        ValueError: A pattern matches nothing, or there is no EMA to hit.
    """
    if fault.what == "ema" and not ema_hooks(runner):
        raise ValueError(
            f"{owner}: what='ema' needs an averaged model, but no EMAHook is in the "
            "config. Add dict(type='EMAHook') to custom_hooks, or take the fault out."
        )
    kind = KINDS[fault.what].named
    if kind in ("", "loss") or not fault.where:
        return list(fault.where)
    model = bare_model(runner)
    if kind == "module":
        names = [name for name, _ in named_modules(model) if name]
    else:
        tensors = named_buffers(model) if kind == "buffer" else named_parameters(model)
        names = [name for name, t in tensors if t.is_floating_point()]
    return match_names(owner, "where", list(fault.where), names, kind)
