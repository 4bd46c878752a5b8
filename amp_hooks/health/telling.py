"""What has been told of how a run is, so that each thing is told once."""

from __future__ import annotations

from mmengine.logging import print_log

from ..engine.condition import State
from ..engine.messages import warn
from ..engine.recorder import IterationRecord
from ..engine.runtime import Runtime
from ..engine.verdict import Verdict
from . import words
from .run_health import RunHealth

_MOST_WATCHES = 100  # lines in the ledger
_LARGEST = 1e30  # of a chart, whose numbers are float32


class Told:
    """The last that was told, and what follows from the condition of now.

    Attributes:
        convalescent: It is watched because it went back, which was told.
    """

    def __init__(self) -> None:
        self.convalescent = False
        self._state = State.HEALTHY
        self._since = self._watches = 0

    def set(self, state: State, convalescent: bool = False) -> None:
        """This is known."""
        self._state, self.convalescent = state, convalescent

    def tell(self, runtime: Runtime, record: IterationRecord) -> None:
        """Say that it is watched, or well again; not yet that it is ill."""
        now = runtime.condition
        if now.state == State.HEALTHY and self._state != State.HEALTHY:
            if not self.convalescent:
                runtime.emit("well", record.iter, record.verdict, since=self._since)
            self.set(State.HEALTHY)
        elif now.state == State.WATCHED and self._state == State.HEALTHY:
            self._watches += 1
            if self._watches <= _MOST_WATCHES:
                about = dict(why=now.why, loss_ratio=now.loss_ratio, since=now.since)
                runtime.emit("watch", record.iter, record.verdict, **about)
                self._state = State.WATCHED
        if now.state != State.HEALTHY and now.since is not None:
            self._since = now.since

    def excused(
        self, runtime: Runtime, record: IterationRecord, found: str, why: str
    ) -> None:
        """Say why what was found is no illness."""
        if self._state != State.HEALTHY:
            about = dict(since=self._since, why=f"{found}, but {why}")
            runtime.emit("well", record.iter, record.verdict, **about)
        self.set(State.HEALTHY)
        print_log(
            f"[amp_hooks] iteration {record.iter}: {found}, but {why}. To go back "
            "would not help; training goes on.",
            logger="current",
        )

    def diverged(self, runtime: Runtime, record: IterationRecord, missing: str) -> None:
        """Say that it is ill.

        Args:
            runtime: Has the condition.
            record: Of this iteration.
            missing: The hook without which nothing follows from it, or "".
        """
        now = runtime.condition
        if self._state == State.ILL:
            return
        about = dict(why=now.why, loss_ratio=now.loss_ratio, since=now.since)
        runtime.emit("diverged", record.iter, Verdict.DIVERGED, **about)
        warn(f"iteration {record.iter}: {words.diverged(now.why, missing)}")
        self.set(State.ILL)

    def state(self) -> list[int]:
        """As plain numbers."""
        known = (self._state, self._since, self._watches, self.convalescent)
        return [int(each) for each in known]

    def load_state(self, state: list[int]) -> None:
        """Take back what :meth:`state` gave."""
        told, self._since, self._watches, quiet = state
        self.set(State(told), bool(quiet))


def show(health: RunHealth, record: IterationRecord) -> None:
    """Let the loss and its healthy range be published."""
    ratio, level, band = health.ratio, health.level, health.band
    if ratio is not None and level is not None and band is not None:
        record.put("loss_level", ratio)
        # All three or none: TensorBoard draws a margin only of points that match.
        record.put("loss_now", min(ratio * level, _LARGEST))
        record.put("loss_low", band[0])
        record.put("loss_high", band[1])
