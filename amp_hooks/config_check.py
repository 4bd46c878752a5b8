"""What is known to hurt a training run, found in its config before it starts."""

from __future__ import annotations

from mmengine.runner import Runner

from .core.finding import Finding


def check_config(runner: Runner) -> list[Finding]:
    """Findings on a runner's config, optimizer wrapper, schedulers and hooks.

    Args:
        runner: Complete, as in ``before_train``.
    """
    return []
