"""Faults of rescue_benchmark.py that FaultInjectionHook does not have."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor, nn


class ScaleWeightsHook(Hook):
    """Multiplies the initial weights of some layers: a badly initialised head."""

    priority = 0  # before our hooks see the model

    def __init__(self, layers: list[str], factor: float) -> None:
        self.layers, self.factor = layers, factor

    def before_train(self, runner: Runner) -> None:
        """Once, after initialisation."""
        for name in self.layers:
            layer: nn.Module = runner.model.get_submodule(name)
            weight: Tensor = layer.weight
            with torch.no_grad():
                weight.mul_(self.factor)


class NanTermHook(Hook):
    """Adds a loss that is NaN in every other iteration, and has no gradient.

    Such is a cross-entropy whose labels are all to be ignored (pytorch#70348).

    Args:
        at: First iteration.
    """

    priority = 0

    def __init__(self, at: int) -> None:
        self.at = at

    def before_train(self, runner: Runner) -> None:
        """Add the term to what the model sums up, once."""
        model: Any = runner.model
        parse_losses = model.parse_losses

        def with_term(losses: dict[str, Any]) -> Any:
            past = runner.iter - self.at
            term = next(self._tensors(losses)).new_full((), 0.1)
            if past >= 0 and past % 2 == 0:
                term.fill_(float("nan"))
            return parse_losses(dict(losses, loss_aux=term))

        model.parse_losses = with_term

    def _tensors(self, losses: dict[str, Any]) -> Any:
        for value in losses.values():
            yield from [value] if isinstance(value, Tensor) else value
