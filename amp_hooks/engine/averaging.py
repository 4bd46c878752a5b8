"""Leave hooks that average weights out after an iteration that was undone."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.hooks import EMAHook, Hook
from mmengine.runner import Runner

from ..errors import SetupError


def averaging_hooks(runner: Runner) -> list[Hook]:
    """Hooks that average weights after each iteration: EMAHook, MeanTeacherHook."""
    return [
        hook
        for hook in runner.hooks
        if any(
            cls.__name__ in ("EMAHook", "MeanTeacherHook") for cls in type(hook).__mro__
        )
    ]


def ema_hooks(runner: Runner) -> list[EMAHook]:
    """Hooks that keep an averaged model, with those of subclasses."""
    return [hook for hook in runner.hooks if isinstance(hook, EMAHook)]


@torch.no_grad()
def begin_with_the_weights(runner: Runner) -> None:
    """Give an EMA that has averaged nothing yet the weights, as its first step would.

    MMEngine copies the model for it before ``init_weights``, so until then it holds
    what a parameter is born with: in DINO's ``level_embed`` that is whatever was in
    memory, NaN now and then.
    """
    for hook in ema_hooks(runner):
        if int(hook.ema_model.steps) == 0:
            weights = hook.src_model.state_dict()
            for name, average in hook.ema_model.module.state_dict().items():
                average.copy_(weights[name])


class Averaging:
    """Wraps ``after_train_iter`` of the averaging hooks, once for the whole suite.

    Attributes:
        undone: The iteration that left no trace; nothing is averaged after it.
    """

    def __init__(self) -> None:
        self.undone = -1
        self._wrapped: list[Hook] = []

    def attach(self, runner: Runner, owner: Hook) -> None:
        """Wrap them, for a hook that undoes iterations.

        Raises:
            ValueError: One of them would average before ``owner`` has judged.
        """
        order = {id(hook): i for i, hook in enumerate(runner.hooks)}
        for hook in averaging_hooks(runner):
            if order[id(hook)] < order[id(owner)]:
                raise SetupError(
                    f"{type(hook).__name__} has priority {hook.priority!r} and would "
                    f"average weights before {type(owner).__name__} has judged the "
                    "iteration. Give it the default priority 'NORMAL', or any number "
                    "above 40."
                )
            if hook not in self._wrapped:
                self._wrap(hook)

    def detach(self) -> None:
        """Give the hooks back as they were."""
        while self._wrapped:
            del self._wrapped.pop().after_train_iter

    def _wrap(self, hook: Hook) -> None:
        original = hook.after_train_iter

        def after_train_iter(runner: Runner, *args: Any, **kwargs: Any) -> None:
            if self.undone != runner.iter:
                original(runner, *args, **kwargs)

        hook.after_train_iter = after_train_iter
        self._wrapped.append(hook)
