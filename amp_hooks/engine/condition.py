"""How the run is, beyond the numbers of one iteration."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

LR_ROSE = 1.5  # times the highest that had gone well: then it is to blame


class State(IntEnum):
    """How a run is, in a word; the numbers are those of the scalar ``amp/health``."""

    HEALTHY = 0
    WATCHED = 1
    ILL = 2


@dataclass(frozen=True)
class Condition:
    """What HealthHook says of the run; without it the run counts as healthy.

    Attributes:
        state: HEALTHY; WATCHED: the loss has left its healthy range, and nothing is
            kept of the run until it is back; ILL: it stays out.
        since: Iteration in which the loss first left its range, where it is out.
        why: One sentence.
        loss_ratio: The loss over its healthy level, where it is known.
        lr_rise: The learning rate over the highest of the healthy past.
        sudden: One iteration did it, at a learning rate that had not risen: one batch,
            or a number that was changed.
        convalescent: It has just gone back and is only watched for that.
        by_loss: It is the loss that shows it, and not an evaluation.
        cost: Loss of the weights of now, where the run is healthy and it is known.
        level: Loss of a healthy run, where it is known.
        start: Loss of the weights that the run began with.
        median: Of the losses since it was left open whether the run is ill.
        learns: It had fallen when that was asked last.
        warms_up: The learning rate was rising at the onset, as in a warm-up, or shortly
            before.
        in_vain: It went back to weights that cost little when they were taken, and now
            these cost as much: what has changed is not the weights.
    """

    state: State = State.HEALTHY
    since: int | None = None
    why: str = ""
    loss_ratio: float | None = None
    lr_rise: float = 1.0
    sudden: bool = False
    convalescent: bool = False
    by_loss: bool = True
    cost: float | None = None
    level: float | None = None
    start: float | None = None
    median: float | None = None
    learns: bool = False
    warms_up: bool = False
    in_vain: bool = False

    @property
    def lr_rose(self) -> bool:
        """Whether the learning rate had risen before, as in no warm-up meanwhile."""
        return self.lr_rise >= LR_ROSE

    @property
    def well(self) -> bool:
        """Whether what the run has learned may be kept."""
        return self.state is State.HEALTHY


class Costs(NamedTuple):
    """Losses of one batch, with the same random numbers.

    Attributes:
        now: With the weights of now.
        before: With those of a snapshot.
        taken_at: The iteration of that.
        usual: With those of the snapshot when it was taken, on any batch, over those of
            a healthy run of late; 1 where that is not known.
        unlike: With those of the snapshot on this batch, over any when it was taken.
        compared: Otherwise the batch cannot be run again, and these are the loss of now
            and that of the time when the snapshot was taken.
    """

    now: float
    before: float
    taken_at: int
    usual: float = 1.0
    unlike: float = 1.0
    compared: bool = True

    def __str__(self) -> str:
        """For the log."""
        if not self.compared:
            return (
                f"that of iteration {self.taken_at}, which it would go back to, was "
                f"{self.before:.3g} then"
            )
        return (
            f"on this batch the weights of now cost {self.now:.3g} and those of "
            f"iteration {self.taken_at} {self.before:.3g}"
        )

    @property
    def comparable(self) -> bool:
        """Whether their ratio says something."""
        return math.isfinite(self.now) and 0 < self.before < math.inf

    def worse(self, times: float) -> bool:
        """Whether the weights of now cost more than ``times`` as much.

        Of losses at or below 0 the difference counts, in parts of the larger one. What
        is not finite speaks against them.
        """
        if not (math.isfinite(self.now) and math.isfinite(self.before)):
            return True
        if self.before > 0:
            return self.now > times * self.before
        scale = max(abs(self.now), abs(self.before))
        return self.now - self.before > (times - 1) * scale
