"""Is this run healthy, watched or ill?"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Any

from ..engine.condition import State
from . import words
from .metric import Metrics
from .symptoms import Cause, Symptoms
from .thresholds import BACK_CALM, CALM, NORMAL_RATIO, WATCH

HELD_BACK = 40  # losses not known to be healthy that are learned once they are
OF_LOSS = ("loss", "start", "term")


class RunHealth:
    """Judges a run by numbers of its iterations that are on the host anyway.

    A level and its spread are learned from the healthy past; how far the loss is above
    its range adds up (Page's CUSUM) and subsides, and so many "log x iterations" make a
    run ill. Nothing is learned while it is watched or ill. The thresholds, with their
    units and reasons, are in :mod:`.thresholds`.

    Attributes:
        condition: Healthy, watched (something may be beginning) or ill.
        since: Iteration of the onset of what makes it watched or ill, or None.
        why: One sentence, or "".

    Examples:
        >>> health = RunHealth()
        >>> for i in range(100):
        ...     health.add(i, 0.9 if i < 61 else 102.0, {})
        >>> health.condition.name, health.since
        ('ILL', 61)
        >>> health.why
        'loss 102 for 0.9 since iteration 61'
    """

    def __init__(self) -> None:
        self.condition = State.HEALTHY
        self.since: int | None = None
        self.why = ""
        self._symptoms = Symptoms()
        self._metrics = Metrics()
        self._cause = ""  # what made it watched or ill
        self._held_back: deque[tuple[float, float | None]] = deque(maxlen=HELD_BACK)
        self._calm = 0  # iterations in range in a row
        self._last, self._excuses = 0, 0
        self._convalescent = False  # went back, and is not known to be well

    @property
    def level(self) -> float | None:
        """The healthy level of the loss, in its units; None: not known yet."""
        s = self._symptoms
        return None if s.range is None else s.reference.loss(s.range.level)

    @property
    def cost(self) -> float | None:
        """That of the weights of now, at most: the level lags behind a falling loss."""
        level = self.level
        return None if level is None else min(level, self._symptoms.latest)

    @property
    def start(self) -> float | None:
        """What the run cost at first, in the loss's units; None: not known yet."""
        return self._symptoms.reference.start.level

    @property
    def band(self) -> tuple[float, float] | None:
        """Edges of the healthy range of the loss; None: not known yet."""
        s = self._symptoms
        if s.range is None:
            return None
        level, width = s.range
        return s.reference.loss(level - width), s.reference.loss(level + width)

    @property
    def ratio(self) -> float | None:
        """Loss of now (a median of five) over its level; None: not known yet."""
        return self._symptoms.ratio

    def add(
        self,
        iteration: int,
        loss: float | None,
        terms: Mapping[str, float],
        lr: float | None = None,
        grad_norm: float | None = None,
        clamped: float | None = None,
    ) -> None:
        """Take in an iteration.

        Args:
            iteration: Its number.
            loss: The total that was propagated, not divided by accumulation. A loss
                that is not finite is for others to judge: it changes nothing here.
            terms: Its terms by name, without the total.
            lr: Largest learning rate of it.
            grad_norm: Total norm, unscaled; None where no step was made.
            clamped: Share of the logits that a clamp bounds.
        """
        s = self._symptoms
        self._last = iteration
        s.note_rate(iteration, lr)
        if loss is None or not math.isfinite(loss):
            return
        loss = s.of_known_terms(loss, terms)
        healthy = self.condition is State.HEALTHY
        s.weigh(iteration, loss, grad_norm, clamped, healthy)
        self._calm = self._calm + 1 if s.inside else 0
        if self.condition is not State.ILL:
            self._held_back.append((loss, lr))
            if healthy and s.none:
                self._learn()
        self._conclude()

    def _learn(self) -> None:
        for loss, lr in self._held_back:
            self._symptoms.reference.learn(loss, lr)
        self._held_back.clear()

    def metric(
        self, iteration: int, name: str, value: float, best_is_larger: bool = True
    ) -> None:
        """Take in an evaluation's main metric.

        Args:
            iteration: Its number.
            name: Metrics of different names are held apart.
            value: In any unit; a fraction or a percentage.
            best_is_larger: Otherwise it is not judged.
        """
        self._metrics.add(iteration, name, value, best_is_larger)
        if self._cause == "metric" and not self._metrics.fallen:
            self._be_well()
        self._conclude()

    @property
    def by_loss(self) -> bool:
        """Whether it is the loss, or gradients, that make it watched or ill."""
        return self._cause != "metric"

    @property
    def over_start(self) -> float | None:
        """Loss of now over that of the start, where that is what speaks against it."""
        start = self.start
        if self._cause != "start" or start is None or start <= 0:
            return None
        return self._symptoms.latest / start

    def excuse(self) -> None:
        """It is not the weights.

        A loss that is moderately higher is the new normal, and so is any other if that
        is found twice in a row: it is not a series of bad batches.
        """
        s = self._symptoms
        self._excuses += 1
        if s.lift <= math.log(NORMAL_RATIO) or self._excuses > 1:
            self._excuses = 0
            self.changed()
        else:
            s.went_back(self._last, None)
            self._be_well()

    @property
    def in_vain(self) -> bool:
        """Whether it went back, and the weights of then cost far more than then."""
        return self._symptoms.back.in_vain

    def changed(self) -> None:
        """What a loss costs has changed: that of now is the new normal."""
        self._symptoms.accept(list(self._held_back))
        self._be_well()

    def rolled_back(
        self,
        now: int,
        target: int,
        then: float | None = None,
        diverged: bool = False,
    ) -> None:
        """The run went back, to be judged anew by the level of before.

        Args:
            now: Iteration at which it did.
            target: Iteration of what it went back to.
            then: Level of the loss when that was taken; None: not known.
            diverged: Because it has, on this rank or another, where being watched is
                as much as one can be.
        """
        sick = self.condition is not State.HEALTHY if diverged else self._is_ill
        of_loss = sick and self._cause in OF_LOSS
        by_metric = self._is_ill and self._cause == "metric"
        lift = 0.0 if by_metric else None  # such a loss was as it should be
        lift = self._symptoms.lift if of_loss else lift
        self._symptoms.went_back(now, lift, then)
        self._metrics.went_back(by_metric, target)
        self._be_well()
        self._convalescent, self._calm = True, 0
        self.condition, self.since = State.WATCHED, now
        self.why = f"went back to iteration {target}"

    @property
    def _is_ill(self) -> bool:
        return self.condition is State.ILL

    def _conclude(self) -> None:
        cause = self._worst()
        if self.condition is State.ILL:
            if self._cause != "metric" and self._calm >= CALM:
                self._be_well()
        elif cause.share >= 1:
            s = self._symptoms
            of_loss = cause.kind in OF_LOSS and s.alive
            if of_loss and s.back.is_normal(s.lift):
                s.accept(list(self._held_back))
                self._be_well()
            else:
                self._fall(State.ILL, cause)
                self._held_back.clear()
                self._calm = 0
        elif self._convalescent and self._calm >= BACK_CALM:
            self._be_well()
        elif cause.share >= WATCH:
            self._fall(State.WATCHED, cause)
        elif cause.share < WATCH / 2 and not self._convalescent:
            self._get_up()
            self._excuses *= self._calm < CALM

    def _worst(self) -> Cause:
        cause, fallen = self._symptoms.worst(), self._metrics.fallen
        if not fallen:
            return cause
        out = fallen > 1 or cause.share >= WATCH
        m = self._metrics
        return Cause(1.0 if out else WATCH, "metric", m.since, m.name)

    def _fall(self, condition: State, cause: Cause) -> None:
        self.condition, self.since = condition, cause.since
        self._cause = cause.kind
        m = self._metrics
        self.why = (
            words.metric_words(m.name, m.value, m.best)
            if cause.kind == "metric"
            else self._symptoms.explain(cause)
        )

    def _get_up(self) -> None:
        self.condition, self.since, self.why = State.HEALTHY, None, ""
        self._cause = ""

    def _be_well(self) -> None:
        self._symptoms.clear()
        self._held_back.clear()
        self._convalescent = False
        self._get_up()

    def state(self) -> dict[str, Any]:
        """What a resumed run needs: plain numbers, lists and strings."""
        return dict(
            condition=int(self.condition),
            since=self.since,
            why=self.why,
            cause=self._cause,
            symptoms=self._symptoms.state(),
            metrics=self._metrics.state(),
            held_back=[list(pair) for pair in self._held_back],
            calm=self._calm,
            convalescent=int(self._convalescent),
            excuses=self._excuses,
        )

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state` gave."""
        self.condition = State(state["condition"])
        self.since, self.why = state["since"], state["why"]
        self._cause, self._calm = state["cause"], state["calm"]
        self._symptoms.load_state(state["symptoms"])
        self._metrics.load_state(state["metrics"])
        held_back = [(loss, lr) for loss, lr in state["held_back"]]
        self._held_back = deque(held_back, maxlen=HELD_BACK)
        self._convalescent = bool(state["convalescent"])
        self._excuses = int(state["excuses"])
