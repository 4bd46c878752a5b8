"""Skipped optimizer steps: how many, how dense, and of what kind."""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import Any

# LossScaleMonitorHook's default: a healthy scale of 65536 reaches 1.0 in 16 skips.
PATIENCE = 16


class SkipKind(str, Enum):
    """Why a dynamic loss scale skipped a step, as far as the pattern tells.

    Attributes:
        CALIBRATION: One of the first steps: the scale starts high on purpose
            (GradScaler: 65536) and comes down to what the model can bear.
        ORDINARY: Now and then a scaled gradient overflows, because GradScaler raises
            the scale every 2000 clean steps until one does.
        COLLAPSE: Skip follows skip, or the scale is at its floor: no loss scale helps.
        FORWARD: Loss or logits were not finite, or the run has diverged and the step
            was refused for that: no loss scale had a part in it, however many follow.
    """

    CALIBRATION = "calibration"
    ORDINARY = "ordinary"
    COLLAPSE = "collapse"
    FORWARD = "forward"


class SkipCounter:
    """Counts the optimizer steps of one loss scaler, in constant time and memory.

    Args:
        patience: So many skips in a row are a collapse.
        calibration: Skips among so many first steps are calibration.
        latest: :attr:`share` is over so many latest steps.

    Attributes:
        steps: Optimizer steps so far, skipped ones included.
        total: Skipped ones.
        streak: Skipped ones since the last step that was taken.
        collapsed: At the last step the scale was at its floor or on the way there,
            whatever the reason.
        by_kind: Skipped ones by :class:`SkipKind` value; FORWARD once there was one.
    """

    def __init__(self, patience: int, calibration: int = 100, latest: int = 1000):
        self.patience = patience
        self.calibration = calibration
        self.steps = 0
        self.total = 0
        self.streak = 0
        self.collapsed = False
        self.by_kind = {k.value: 0 for k in SkipKind if k is not SkipKind.FORWARD}
        self._latest: deque[bool] = deque(maxlen=latest)
        self._skipped_latest = 0

    @property
    def share(self) -> float:
        """Skipped share of the latest steps, 0 to 1."""
        return self._skipped_latest / len(self._latest) if self._latest else 0.0

    def add(
        self, skipped: bool, at_floor: bool = False, forward: bool = False
    ) -> SkipKind | None:
        """Count one optimizer step.

        Args:
            skipped: The scaler found non-finite gradients and left the weights alone.
            at_floor: The loss scale cannot usefully be lowered any more.
            forward: The forward pass was not finite.

        Returns:
            What kind of skip it was, ``None`` if the step was taken.
        """
        self.steps += 1
        if len(self._latest) == self._latest.maxlen:
            self._skipped_latest -= self._latest[0]
        self._latest.append(skipped)
        self._skipped_latest += skipped
        if not skipped:
            self.streak = 0
            self.collapsed = False
            return None
        self.total += 1
        self.streak += 1
        self.collapsed = at_floor or self.streak >= self.patience
        if forward:
            kind = SkipKind.FORWARD
        elif self.collapsed:
            kind = SkipKind.COLLAPSE
        elif self.steps <= self.calibration:
            kind = SkipKind.CALIBRATION
        else:
            kind = SkipKind.ORDINARY
        self.by_kind[kind.value] = self.by_kind.get(kind.value, 0) + 1
        return kind

    def state(self) -> dict[str, Any]:
        """Everything a resumed run needs, as plain numbers and strings."""
        return dict(
            steps=self.steps,
            total=self.total,
            streak=self.streak,
            by_kind=dict(self.by_kind),
            latest="".join("01"[skipped] for skipped in self._latest),
        )

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state` gave."""
        self.steps = int(state["steps"])
        self.total = int(state["total"])
        self.streak = int(state["streak"])
        self.by_kind.update(state["by_kind"])
        self._latest.clear()
        self._latest.extend(c == "1" for c in state["latest"])
        self._skipped_latest = sum(self._latest)
