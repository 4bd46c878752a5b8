"""The range that a loss is held against: recent past, learning rate, start."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from .level import HIGH, Level, height
from .rates import Rates
from .start import Start
from .thresholds import (
    CLIP,
    CREDIT,
    FIRST,
    NEW_RATE,
    RANGE,
    RANGE_CREDIT,
    RANGE_LIMIT,
    RANGE_SPREADS,
    SIGNED,
    SMALL,
    SPREAD_WINDOW,
    WINDOW,
)

# After so many losses "small" is what it stays: a first loss may be absurd.
SETTLED = 50
EVERY = 10  # losses learned: how lopsided they are costs 20 microseconds to tell


class Range(NamedTuple):
    """Where a healthy loss lies, in :func:`height`.

    Attributes:
        level: Its middle.
        width: Upwards; downwards for a chart.
    """

    level: float
    width: float


class Reference:
    """What the loss of a healthy run would be now.

    Attributes:
        past: Healthy losses of late.
        start: Losses before training had changed anything.
        rates: Losses by learning rate.
        small: Below it a loss is as good as 0; None before there is any. Of one that
            has been below 0, a likelihood's or a policy gradient's, ratios to its level
            say nothing.
    """

    def __init__(self) -> None:
        self.past = Level(WINDOW)
        self._longer_past = Level(SPREAD_WINDOW)
        self.start = Start()
        self.rates = Rates()
        self.small: float | None = None
        self._settled = self._signed = False
        self._at_rate: float | None = None
        self._excess = 0.0  # mean of the past over its level
        self._learned = 0

    def observe(self, loss: float, lr: float | None) -> None:
        """Take in a loss, healthy or not: the start and the learning rate."""
        if not self._settled:
            self._scale(loss)
        self._signed = self._signed or loss < 0
        if self._signed:
            self.small = max(self.small or 0.0, SIGNED)
        self.start.add(loss, lr, self.small)
        self._at_rate = self.rates.at(lr)

    def _scale(self, loss: float) -> None:
        count = len(self.past)
        size = abs(loss)
        if count:
            high, low = self.past.quantile(HIGH), self.past.quantile(1 - HIGH)
            size = max(abs(self.past.median), high - low)
        self._settled = count >= SETTLED and size > 0
        if not self._settled:
            size = max(size, self.start.level or 0.0)
        self.small = SMALL * size if size > 0 else None

    def learn(self, loss: float, lr: float | None) -> None:
        """Take in a healthy loss; as long as all are 0 there is no level."""
        if self.small is None:
            return
        self.past.add(loss)
        self._longer_past.add(loss)
        self.rates.learn(loss, lr)
        self._learned += 1
        if self._learned % EVERY == 0 and self.small is not None:
            self._excess = self._longer_past.excess(
                self.small, height(self.past.median, self.small), CLIP, CREDIT
            )

    def recent(self) -> Range | None:
        """The range of late, at this learning rate; None: not known yet."""
        count = len(self.past)
        if count < FIRST or self.small is None:
            return None
        level = self.past.median
        # Of losses of two heights either may be the level: it must be the same one.
        middle = height(level, self.small)
        if self._at_rate is not None and self._at_rate > level:
            level = self._at_rate
        noise = RANGE_SPREADS * self._longer_past.spread(self.small, middle)
        # Whatever its noise is like, the healthy past itself must not add up.
        noise = max(noise, self._excess + RANGE_CREDIT)
        width = min(RANGE_LIMIT, max(RANGE, noise)) + 3 / count
        if self.rates.is_new:
            width += NEW_RATE
        return Range(height(level, self.small), width)

    def from_start(self) -> Range | None:
        """The range of a run no worse than untrained; None: not known."""
        level, edge = self.start.level, self.start.edge()
        if self._signed or level is None or edge is None or self.small is None:
            return None
        return Range(height(level, self.small), edge)

    def shift(self, by: float, is_new: bool) -> None:
        """A loss term is part of the total from now on, perhaps for the first time."""
        self.past.shift(by)
        self._longer_past.shift(by)
        self.rates.shift(by)
        if is_new:
            self.start.shift(by)

    def accept(self, losses: list[tuple[float, float | None]]) -> None:
        """Take these losses as the new normal; there must be one."""
        self.past.clear()
        self._longer_past.clear()
        for loss, lr in losses:
            self.learn(loss, lr)
        self.start.raise_to(self.past.median)

    def begin_anew(self, loss: float) -> None:
        """Training goes on from weights that cost so much."""
        self.accept([(loss, None)] * FIRST)

    def loss(self, at: float) -> float:
        """The loss of a height."""
        return (self.small or 0.0) * math.sinh(at)

    def state(self) -> dict[str, Any]:
        """As plain numbers, lists and strings."""
        return dict(
            past=self._longer_past.state(),
            start=self.start.state(),
            rates=self.rates.state(),
            small=self.small,
            settled=int(self._settled),
            signed=int(self._signed),
            excess=[self._excess, self._learned],
        )

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state` gave."""
        self._longer_past.load_state(state["past"])
        self.past.load_state(state["past"][-WINDOW:])
        self.start.load_state(state["start"])
        self.rates.load_state(state["rates"])
        self.small, self._settled = state["small"], bool(state["settled"])
        self._signed = bool(state.get("signed"))
        self._excess, self._learned = state["excess"]
