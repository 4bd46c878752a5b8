"""Which snapshot a rollback goes back to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

# Not for ever: a model that always needs its clamp has checkpoints, too.
_MOST_RENEWALS = 9


@dataclass
class Entry(Generic[T]):
    """A snapshot in the ring.

    Attributes:
        iter: Iterations that were complete when it was taken.
        item: The snapshot.
        left: Healthy iterations until it is proven.
        renewals: How often its probation has begun anew.
    """

    iter: int
    item: T
    left: int
    renewals: int = 0


class SnapshotRing(Generic[T]):
    """The newest snapshots, the oldest first.

    A finite snapshot may carry the disease all the same: what blows up has grown for a
    while. PaLM therefore went back about 100 steps before a spike (arXiv 2204.02311).
    Here a snapshot is on probation until so many healthy iterations have followed it,
    and no rollback goes to one that is.

    Args:
        keep: Proven ones kept, at least 1.
        probation: Healthy iterations that prove a snapshot.
        cooldown: A rollback so many iterations after another one goes to an older
            snapshot than that one did.

    Attributes:
        entries: The oldest first: ``keep`` proven ones, within the cooldown the one
            that would be the next target, and those on probation.
        last: Iteration and target of the last rollback, if there was one.
        reusable: The item pushed out last, whose memory may be used again.
    """

    def __init__(self, keep: int, probation: int, cooldown: int) -> None:
        self.keep, self.probation, self.cooldown = keep, probation, cooldown
        self.entries: list[Entry[T]] = []
        self.last: tuple[int, int] | None = None
        self.reusable: T | None = None

    @property
    def on_probation(self) -> bool:
        """Whether a snapshot is not proven yet."""
        return any(entry.left > 0 for entry in self.entries)

    def add(self, iteration: int, item: T, proven: bool = False) -> Entry[T]:
        """Put in a snapshot.

        Args:
            iteration: Complete iterations.
            item: The snapshot.
            proven: It needs no probation, as the state before the first step.
        """
        entry = Entry(iteration, item, 0 if proven else self.probation)
        self.entries.append(entry)
        self._rotate(iteration)
        return entry

    def healthy(
        self, now: int, iterations: int = 1, in_doubt: Callable[[], bool] | None = None
    ) -> list[Entry[T]]:
        """Healthy iterations have passed; returns the snapshots that they have proven.

        Args:
            now: The last of them.
            iterations: How many: those of one optimizer step.
            in_doubt: Asked at the end of a probation: it then begins anew, at most nine
                times.
        """
        waiting = [entry for entry in self.entries if entry.left > 0]
        for entry in waiting:
            entry.left = max(0, entry.left - iterations)
            may = entry.left == 0 and entry.renewals < _MOST_RENEWALS
            if may and in_doubt is not None and in_doubt():
                entry.left, entry.renewals = self.probation, entry.renewals + 1
        self._rotate(now)
        return [entry for entry in waiting if entry.left == 0]

    def go_back(self, now: int) -> Entry[T] | None:
        """The snapshot to restore at iteration ``now``; drops all newer ones.

        The oldest proven one is kept whatever happens: there is nothing better.
        """
        proven = [entry for entry in self.entries if entry.left == 0]
        if not proven:
            return None
        target = proven[-1]
        if self.cooling(now):
            target = self._older_than_last(proven) or proven[0]
        self.entries = [e for e in proven if e.iter <= target.iter]
        self.last = (now, target.iter)
        return target

    def cooling(self, now: int) -> bool:
        """Whether ``go_back`` was called at most ``cooldown`` iterations ago."""
        return self.last is not None and now - self.last[0] <= self.cooldown

    def _rotate(self, now: int) -> None:
        proven = [entry for entry in self.entries if entry.left == 0]
        # Within the cooldown it would be the next target.
        needed = self._older_than_last(proven) if self.cooling(now) else None
        for entry in proven[: -self.keep]:
            if entry is not needed:
                self.entries.remove(entry)
                self.reusable = entry.item

    def _older_than_last(self, proven: list[Entry[T]]) -> Entry[T] | None:
        last = self.last[1] if self.last is not None else 0
        return next((e for e in reversed(proven) if e.iter < last), None)
