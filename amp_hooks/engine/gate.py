"""What may stand before an optimizer step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor


class Gate(Protocol):
    """Stands before every optimizer step; StepGuardHook's.

    Attributes:
        owner: The hook whose it is, which is off if the gate fails.
        dropped: Optimizers whose accumulation has been given up: the next step is not
            taken.
        on_backward: Called before each backward pass.
    """

    owner: Any
    dropped: set[str]
    on_backward: list[Callable[[], None]]

    def before_backward(
        self, name: str, params: list[Tensor], loss: Tensor
    ) -> Tensor | None:
        """The loss to propagate, or ``None`` if it leads nowhere."""

    def before_step(self, name: str, params: list[Tensor]) -> Tensor | None:
        """The gradients are complete, and nobody has looked at them yet.

        Returns:
            Their norms, where this rank has but a part of them.
        """

    def opens(self, name: str, params: list[Tensor]) -> bool:
        """Whether there is a step to take at all; nothing waits for the device."""
