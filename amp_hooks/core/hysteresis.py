"""How many overflows a loss scale bears before it is lowered."""

from __future__ import annotations


class Hysteresis:
    """Counts overflows as Megatron-LM's DynamicGradScaler does.

    The first ``tolerance - 1`` overflows leave the scale alone, every further one
    lowers it, until ``interval`` clean steps in a row restore the tolerance. Source:
    https://github.com/NVIDIA/Megatron-LM/blob/main/megatron/core/optimizer/grad_scaler.py

    Args:
        tolerance: 1 lowers the scale at every overflow, as torch's GradScaler does.
        interval: Clean steps after which the tolerance is as at the beginning.
    """

    def __init__(self, tolerance: int, interval: int) -> None:
        self.tolerance = tolerance
        self.interval = interval
        self.left = tolerance
        self.clean = 0

    def overflow(self) -> bool:
        """Count an overflow; whether the scale is to be lowered for it."""
        self.clean = 0
        self.left = max(0, self.left - 1)
        return self.left == 0

    def step(self) -> None:
        """Count a step that was taken."""
        self.clean += 1
        if self.clean >= self.interval:
            self.left, self.clean = self.tolerance, 0
