"""What speaks against a run: evidence of each kind, since when, and in words."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

from . import words
from .evidence import Evidence
from .going_back import GoingBack
from .level import height
from .rate_rise import RateRise
from .reference import Range, Reference
from .signs import Signs
from .terms import Terms
from .thresholds import (
    CLIP,
    DEAD_RATIO,
    PATIENCE,
    START_AT_ONCE,
    START_CLIP,
    START_PATIENCE,
    WATCH,
)

LATEST = 5  # losses whose median is the loss of now: three bad batches in a row show


class Cause(NamedTuple):
    """Something that speaks against a run.

    Attributes:
        share: Of its patience; 1 makes a run ill.
        kind: ``loss``, ``start``, ``term``, ``dead``, ``clamped`` or ``metric``.
        since: Iteration of its onset.
        name: Of the term or metric.
    """

    share: float
    kind: str
    since: int | None
    name: str = ""


_NOTHING = Cause(0.0, "loss", None)


class Symptoms:
    """Weighs each iteration against the healthy past.

    Attributes:
        reference: That past.
        range: Where a healthy loss lies now, or None.
        back: What is known of going back.
        ratio: Loss of now over its level, or None.
        lift: Its logarithm.
        inside: Whether nothing is out of its range now.
    """

    def __init__(self) -> None:
        self.reference = Reference()
        self.range: Range | None = None
        self.back = GoingBack()
        self.ratio: float | None = None
        self.lift = 0.0
        self.inside = True
        self._recent, self._start = Evidence(), Evidence()
        self._terms, self._signs = Terms(), Signs()
        self._latest: deque[float] = deque(maxlen=LATEST)
        self._left_start = 0  # iteration after the last batch that cost no more
        self._lr: float | None = None
        self._rise = RateRise()

    def note_rate(self, iteration: int, lr: float | None) -> None:
        """Take in a learning rate, also of an iteration whose loss says nothing."""
        self._lr = lr
        if lr is not None:
            self._rise.add(iteration, lr)

    def of_known_terms(self, loss: float, terms: Mapping[str, float]) -> float:
        """The total without terms that are too new to be part of its past."""
        past = self.reference.past
        total = past.median if len(past) else None
        left_out, shift, is_new = self._terms.add(terms, total)
        if shift:
            self.reference.shift(shift, is_new)
        return loss - left_out

    def weigh(
        self,
        iteration: int,
        loss: float,
        grad_norm: float | None,
        clamped: float | None,
        healthy: bool,
    ) -> None:
        """Take in an iteration.

        Args:
            iteration: Its number.
            loss: Of the known terms; finite.
            grad_norm: Unscaled, or None where no step was made.
            clamped: Share of the logits, or None.
            healthy: Whether norms and terms may be learned.
        """
        self.reference.observe(loss, self._lr)
        self._latest.append(loss)
        small = self.reference.small
        if small is None:
            return
        now, latest = height(loss, small), height(self.latest, small)
        above = self._weigh_recent(iteration, now, latest)
        self._weigh_start(iteration, now, latest)
        healthy = healthy and self.none
        self._terms.judge(iteration, small, self.back.patience, healthy)
        self._signs.add(iteration, grad_norm, clamped, above, healthy)
        self.inside = self.inside and not self._signs.suspect

    def _weigh_recent(self, iteration: int, now: float, latest: float) -> bool:
        self.inside = True
        self.range = recent = self.reference.recent()
        if recent is None:
            return False
        patience = self.back.patience * PATIENCE
        excess = now - recent.level - recent.width
        self._recent.add(iteration, excess, CLIP, patience)
        self.back.add(now - recent.level, excess <= 0)
        self.lift = latest - recent.level
        self.ratio = math.exp(min(self.lift, 700.0))
        self.inside = self.lift <= recent.width
        return self.lift > math.log(DEAD_RATIO)

    def _weigh_start(self, iteration: int, now: float, latest: float) -> None:
        first = self.reference.start.level
        if first is not None and self._last <= first:
            self._left_start = iteration + 1
        start = self.reference.from_start()
        if start is None:
            return
        clip, patience = CLIP, PATIENCE
        if self.reference.start.early:
            known = self.reference.start.noise_is_known
            clip, patience = START_CLIP if known else START_AT_ONCE, START_PATIENCE
        if now <= start.level:
            self._start.clear()  # single batches that cost so little come again
        excess = now - start.level - start.width
        self._start.add(iteration, excess, clip, self.back.patience * patience)
        self.inside = self.inside and latest - start.level <= start.width

    @property
    def latest(self) -> float:
        """The loss of now: a median of the last ones."""
        return sorted(self._latest)[len(self._latest) // 2] if self._latest else 0.0

    @property
    def _last(self) -> float:
        return self._latest[-1] if self._latest else 0.0

    @property
    def none(self) -> bool:
        """Whether there is no evidence at all."""
        signs = self._signs.dead or self._signs.clamped
        return self._recent.since is None and self._start.since is None and not signs

    @property
    def alive(self) -> bool:
        """Whether gradients are no smaller than they use to be."""
        return not self._signs.dead

    def worst(self) -> Cause:
        """What speaks most against the run."""
        term = self._terms.worst
        if term is None and self.none and not self._signs.suspect:
            return _NOTHING
        since = self._start.since
        if since is not None and self.reference.start.early:
            # A hot start rises slowly: it began where no batch cost as little any more.
            since = self._left_start
        causes = [
            Cause(self._recent.value, "loss", self._recent.since),
            Cause(self._start.value, "start", since),
        ]
        if term is not None:
            name, evidence = term
            causes.append(Cause(evidence.value, "term", evidence.since, name))
        signs = self._signs
        if signs.suspect:
            kind = "dead" if signs.dead else "clamped"
            since = signs.dead_since if signs.dead else signs.clamped_since
            if since is not None and self._recent.since is not None:
                since = min(since, self._recent.since)
            causes.append(Cause(1.0 if signs.ill else WATCH, kind, since))
        return max(causes, key=lambda cause: cause.share)

    def explain(self, cause: Cause) -> str:
        """One sentence on a cause that is no metric."""
        level = 0.0 if self.range is None else self.reference.loss(self.range.level)
        usual = cause.kind != "start" or self._recent.since is not None
        if cause.kind == "term":
            value, level = self._terms.value_of(cause.name)
            why = words.loss_words(cause.name, value, level)
        elif usual:
            why = words.loss_words("loss", self._shown(level), level)
        else:
            level = self.reference.start.level or 0.0
            why = words.start_words(self._shown(level), level)
        why += words.since_words(cause.since)
        if cause.kind == "dead":
            why += "; hardly any gradient is left"
        elif cause.kind == "clamped":
            why += f"; {self._signs.share:.0%} of the logits are clamped"
        if (rise := self._rise.near(cause.since)) is not None:
            why += words.rate_words(rise)
        rose = self._terms.rose_most(self.reference.small or 1.0)
        if rose is not None and rose[0] != cause.name and rose[1] > DEAD_RATIO:
            why += words.term_words(*rose)
        return why

    def _shown(self, level: float) -> float:
        """The loss of now; where that does not show it yet, the last one."""
        shows = self.latest > DEAD_RATIO * level
        return self.latest if shows else max(self.latest, self._last)

    def clear(self) -> None:
        """Drop all evidence; the past is kept."""
        self._recent.clear()
        self._start.clear()
        self._terms.clear()
        self._signs.clear()

    def went_back(
        self, now: int, lift: float | None, then: float | None = None
    ) -> None:
        """Begin anew by the level of before, or that of weights far above it.

        Args:
            now: Iteration in which it went back.
            lift: As :class:`GoingBack` takes it.
            then: Level of the loss when the weights gone back to were taken.
        """
        self._left_start = now + 1
        self._rise.forget()
        self.clear()
        self._latest.clear()
        recent, small, above = self.range, self.reference.small, None
        width = recent.width if recent else 0.0
        if recent and small and then is not None:
            above = max(0.0, height(then, small) - recent.level)
        if above is not None and then is not None and above > width:
            self.reference.begin_anew(then)
            lift, above = None if lift is None else max(0.0, lift - above), 0.0
        self.back.begin(lift, above, width)

    def accept(self, losses: list[tuple[float, float | None]]) -> None:
        """Take these losses, at these learning rates, as the new normal."""
        self.reference.accept(losses or [(loss, self._lr) for loss in self._latest])
        self._terms.clear(past=True)
        self.back = GoingBack()
        self.clear()

    def _parts(self) -> dict[str, Any]:
        return dict(
            reference=self.reference,
            back=self.back,
            recent=self._recent,
            start=self._start,
            terms=self._terms,
            signs=self._signs,
        )

    def state(self) -> dict[str, Any]:
        """As plain numbers, lists and strings."""
        state = {name: part.state() for name, part in self._parts().items()}
        return dict(
            state,
            ratio=self.ratio,
            lift=self.lift,
            inside=int(self.inside),
            latest=list(self._latest),
            left_start=self._left_start,
            lr=self._lr,
            range=None if self.range is None else list(self.range),
            **self._rise.state(),
        )

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state` gave."""
        for name, part in self._parts().items():
            part.load_state(state[name])
        self.ratio, self.lift = state["ratio"], state["lift"]
        self.inside = bool(state["inside"])
        self._latest = deque(state["latest"], maxlen=LATEST)
        self._left_start, self._lr = state["left_start"], state["lr"]
        self._rise.load_state(state)
        self.range = None if state["range"] is None else Range(*state["range"])
