"""A hook that looks at a run from outside the suite."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from gpu_check import runs


class Probe(Hook):
    """Draws from the device's generator in each iteration, and keeps some states.

    Args:
        device: Whose generator.
        keep: Iterations before which the learned state is copied.

    Attributes:
        draws: The latest draw in each iteration.
        states: The copies.
        dtypes: In what each iteration's first convolution computes.
    """

    priority = 45  # behind RollbackHook, which takes and restores states

    def __init__(self, device: str, keep: tuple[int, ...] = ()) -> None:
        self.device, self.keep = device, keep
        self.draws: dict[int, list[float]] = {}
        self.states: dict[int, dict[str, torch.Tensor]] = {}
        self.dtypes: dict[int, str] = {}

    def before_train(self, runner: Runner) -> None:
        """Look at the first convolution."""
        first = next(
            m for m in runner.model.modules() if isinstance(m, torch.nn.Conv2d)
        )

        def look(module: Any, args: Any, output: torch.Tensor) -> None:
            if torch.is_grad_enabled():
                self.dtypes[runner.iter] = str(output.dtype).rsplit(".", 1)[-1]

        self._handle = first.register_forward_hook(look)

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        """Draw, and copy."""
        self.draws[runner.iter] = torch.rand(4, device=self.device).tolist()
        if runner.iter in self.keep:
            self.states[runner.iter] = runs.learned(runner)

    def after_train(self, runner: Runner) -> None:
        """Let go of the model."""
        self._handle.remove()
