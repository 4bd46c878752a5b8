"""When the weights of now and those of before are compared without a suspicion."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..engine.condition import Condition, Costs, State
from .rise_look import RiseLook
from .start_look import StartLook
from .step_look import StepLook


class Looks:
    """At a start, after a learning rate has jumped, after an enormous gradient.

    When they are due, all ranks know alike: the answer is sent to all of them.

    Attributes:
        start: Of the start, or of where it went back to.
    """

    def __init__(self) -> None:
        self.start = StartLook()
        self._rise, self._step = RiseLook(), StepLook()

    def due(
        self, iteration: int, lr: float | None, norm: float | None, cost: float | None
    ) -> list[RiseLook | StepLook]:
        """Take in an iteration; those after something has happened that are due.

        Args:
            iteration: The present one.
            lr: Its largest learning rate.
            norm: Of the gradient that all ranks have stepped with, if they have.
            cost: As for :meth:`RiseLook.due`.
        """
        due: list[RiseLook | StepLook] = []
        if self._rise.due(iteration, lr, cost):
            due.append(self._rise)
        if self._step.due(iteration, norm, cost):
            due.append(self._step)
        return due

    def take(
        self,
        ask: Callable[..., Costs | None],
        iteration: int,
        due: list[RiseLook | StepLook],
    ) -> Condition | None:
        """Ask for a second opinion where one is due; what is to be said of it."""
        found = None
        if self.start.due(iteration):
            self.start.add(ask(Condition(State.ILL, since=0), unasked=True))
            found = self.start.ruined if self.start.last(iteration) else None
        for look in due:
            ruined = look.ruined(ask(look.jump.question, unasked=True))
            found = found or ruined
        return found

    def went_back(self, iteration: int) -> None:
        """These are not its weights any more."""
        self.start.went_back(iteration)
        self._rise.forget()
        self._step.forget()

    def state(self) -> dict[str, Any]:
        """As plain numbers and lists."""
        rise, step = self._rise.state(), self._step.state()
        return dict(start=self.start.state(), rise=rise, step=step)

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state` gave; an earlier version had no step."""
        self._rise.load_state(state["rise"])
        if "start" in state:
            self.start.load_state(state["start"])
        if "step" in state:
            self._step.load_state(state["step"])
