"""Come before FlexibleRunner reads a checkpoint, for which it has no hook event."""

from __future__ import annotations

import functools
from typing import Any

from mmengine.hooks import EMAHook
from mmengine.runner import FlexibleRunner


def cannot_be_resumed(runner: Any) -> str | None:
    """A hook that ends a resume of FlexibleRunner, by its class.

    MMEngine's EMAHook makes its averages in ``before_run``, and is given those of the
    checkpoint before that: AttributeError.
    """
    if not isinstance(runner, FlexibleRunner):
        return None
    found = [type(hook).__name__ for hook in runner.hooks if isinstance(hook, EMAHook)]
    return found[0] if found else None


def ask_before_load() -> None:
    """Let FlexibleRunner call ``before_load(runner)`` of hooks that have it; once.

    Runner reads a checkpoint after ``before_run``, FlexibleRunner before it. Runs
    without such hooks are as they were.
    """
    original = FlexibleRunner.load_or_resume
    if getattr(original, "asks_before_load", False):
        return

    @functools.wraps(original)
    def load_or_resume(runner: Any) -> None:
        for hook in runner.hooks:  # StabilityHook's members join behind it
            if (before_load := getattr(hook, "before_load", None)) is not None:
                before_load(runner)
        original(runner)

    vars(load_or_resume)["asks_before_load"] = True
    FlexibleRunner.load_or_resume = load_or_resume
