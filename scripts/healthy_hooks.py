"""What makes the runs of healthy_runs.py uneven, and one of them ill."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner


class LossWeightHook(Hook):
    """Sets the weight of a loss: a term that is switched on or off.

    Args:
        loss: Path of its module.
        weights: By the iteration from which they hold.
    """

    def __init__(self, loss: str, weights: dict[int, float]) -> None:
        self.loss, self.weights = loss, weights

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        """In each iteration, as a rollback may go back behind the switch."""
        due = [at for at in self.weights if at <= runner.iter]
        if due:
            module: Any = runner.model.get_submodule(self.loss)
            module.loss_weight = self.weights[max(due)]


class HardBatchHook(Hook):
    """Now and then makes a batch hard: three times as bright, and noisy.

    Args:
        every: Iterations.
    """

    priority = 0  # before our hooks see the batch

    def __init__(self, every: int) -> None:
        self.every = every

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        """Not by the run's own random numbers."""
        if (runner.iter + 1) % self.every:
            return
        generator = torch.Generator().manual_seed(runner.iter)
        for i, image in enumerate(data_batch["inputs"]):
            noise = torch.randn(image.shape, generator=generator) * 30
            hard = image.float() * 3 + noise
            data_batch["inputs"][i] = hard.clamp(0, 255).to(image.dtype)


class JumpHook(Hook):
    """Multiplies the learning rate once, which is no healthy run.

    Args:
        at: Iteration.
        factor: Of the learning rate.
    """

    def __init__(self, at: int, factor: float) -> None:
        self.at, self.factor = at, factor

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        """A schedule goes on from there: MMEngine's are recursive."""
        if runner.iter == self.at:
            for group in runner.optim_wrapper.optimizer.param_groups:
                group["lr"] *= self.factor
