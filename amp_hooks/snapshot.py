"""A run's learned state: look at it, copy it, put it back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from mmengine.hooks import EMAHook
from mmengine.runner import Runner

from .core.finite import nonfinite_names
from .core.trees import cpu_copy
from .runtime import bare_model
from .step_tap import iter_wrappers


def learned_state(runner: Runner) -> dict[str, Any]:
    """Weights, buffers, optimizers, loss scale and EMA, by reference."""
    return dict(
        model=bare_model(runner).state_dict(),
        optimizer={
            name: wrapper.state_dict()
            for name, wrapper in iter_wrappers(runner.optim_wrapper)
        },
        ema=[hook.ema_model.state_dict() for hook in _ema_hooks(runner)],
    )


def nonfinite_state(runner: Runner, ignore: frozenset[str]) -> list[str]:
    """Names in the learned state that hold NaN or infinity."""
    names = nonfinite_names(learned_state(runner), limit=1000)
    return [name for name in names if name not in ignore]


def infinite_by_design(runner: Runner) -> frozenset[str]:
    """Buffers that hold infinities on purpose, such as attention masks.

    To be asked before the first step. BatchNorm statistics never do, and NaN is never
    on purpose.
    """
    found, emas = set(), _ema_hooks(runner)
    for name, b in bare_model(runner).named_buffers():
        if "running_" in name or not b.is_floating_point():
            continue
        if torch.isinf(b).any() and not torch.isnan(b).any():
            found.add(f"model.{name}")
            found |= {f"ema[{i}].module.{name}" for i, _ in enumerate(emas)}
    return frozenset(found)


@dataclass(frozen=True)
class Snapshot:
    """A copy of the learned state in host memory.

    Attributes:
        iter: Iterations that were complete when it was taken.
        state: As from :func:`learned_state`, sharing nothing with the run.
    """

    iter: int
    state: dict[str, Any]

    @classmethod
    def take(cls, runner: Runner) -> Snapshot:
        """Copy the state as it is."""
        return cls(runner.iter, cpu_copy(learned_state(runner)))

    def restore(self, runner: Runner) -> None:
        """Put the learned state back into the live objects, bit for bit.

        The position in the run stays: iteration, schedulers, and the hyper-parameters
        in the optimizers' groups, learning rate included. Gradients are cleared.
        """
        bare_model(runner).load_state_dict(self.state["model"])
        for name, wrapper in iter_wrappers(runner.optim_wrapper):
            optimizer = wrapper.optimizer
            hyper = [_without_params(group) for group in optimizer.param_groups]
            base = wrapper.base_param_settings
            # The wrapper takes keys out of the dict that it is given.
            wrapper.load_state_dict(dict(self.state["optimizer"][name]))
            wrapper.base_param_settings = base
            for group, kept in zip(optimizer.param_groups, hyper):
                group.update(kept)
            optimizer.zero_grad()
        for hook, state in zip(_ema_hooks(runner), self.state["ema"]):
            hook.ema_model.load_state_dict(state)


def _without_params(group: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "params"}


def _ema_hooks(runner: Runner) -> list[EMAHook]:
    return [hook for hook in runner.hooks if isinstance(hook, EMAHook)]
