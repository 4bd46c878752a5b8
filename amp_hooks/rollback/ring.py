"""Which snapshot a rollback goes back to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
        number: Of the snapshot, in the order in which they were taken.
        cost: Loss of its weights when it was taken, where that is known.
    """

    iter: int
    item: T
    left: int
    renewals: int = 0
    number: int = 0
    cost: float | None = None


class SnapshotRing(Generic[T]):
    """The newest snapshots, the oldest first.

    A finite snapshot may carry the disease all the same: what blows up has grown for a
    while. PaLM therefore went back about 100 steps before a spike (arXiv 2204.02311).
    Here a snapshot is on probation until so many healthy iterations have followed it,
    and no rollback goes to one that is.

    A ruin may also be slow, or be seen late. So the ages of those that are kept double,
    as in a backup scheme of grandfather, father and son: one, two, four, ... intervals,
    up to ``keep`` of them.

    Args:
        keep: Proven ones kept, at least 1.
        probation: Healthy iterations that prove a snapshot.
        cooldown: A rollback so many iterations after another one goes to an older
            snapshot than that one did.

    Attributes:
        entries: The oldest first: ``keep`` proven ones whose ages double, within the
            cooldown the one that would be the next target, and those on probation.
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

    def add(
        self, iteration: int, item: T, proven: bool = False, cost: float | None = None
    ) -> Entry[T]:
        """Put in a snapshot.

        Args:
            iteration: Complete iterations.
            item: The snapshot.
            proven: It needs no probation, as the state before the first step.
            cost: Loss of its weights, where that is known.
        """
        number = self.entries[-1].number + 1 if self.entries else 0
        left = 0 if proven else self.probation
        entry = Entry(iteration, item, left, number=number, cost=cost)
        self.entries.append(entry)
        self._rotate(iteration)
        return entry

    def healthy(
        self,
        now: int,
        iterations: int = 1,
        in_doubt: Callable[[], bool] | None = None,
        ill: Callable[[], bool] | None = None,
    ) -> list[Entry[T]]:
        """Healthy iterations have passed; returns the snapshots that they have proven.

        Args:
            now: The last of them.
            iterations: How many: those of one optimizer step.
            in_doubt: Asked at the end of a probation: it then begins anew, at most nine
                times.
            ill: Asked then, too: while the run is ill it begins anew for ever.
        """
        waiting = [entry for entry in self.entries if entry.left > 0]
        if not waiting and len(self.entries) <= self.keep:
            return []  # nothing to prove, and none too many
        for entry in waiting:
            entry.left = max(0, entry.left - iterations)
            if entry.left == 0 and ill is not None and ill():
                entry.left = self.probation
            may = entry.left == 0 and entry.renewals < _MOST_RENEWALS
            if may and in_doubt is not None and in_doubt():
                entry.left, entry.renewals = self.probation, entry.renewals + 1
        self._rotate(now)
        return [entry for entry in waiting if entry.left == 0]

    def go_back(self, now: int, before: int | None = None) -> Entry[T] | None:
        """The snapshot to restore at iteration ``now``; drops all newer ones.

        The oldest proven one is kept whatever happens: there is nothing better.

        Args:
            now: The present iteration.
            before: The iteration in which the illness showed first. It was caused by
                the step before that at the latest.
        """
        target = self.target(now, before)
        if target is None:
            return None
        proven = [entry for entry in self.entries if entry.left == 0]
        self.entries = [e for e in proven if e.iter <= target.iter]
        self.last = (now, target.iter)
        return target

    def target(self, now: int, before: int | None = None) -> Entry[T] | None:
        """What :meth:`go_back` would return; nothing is changed."""
        proven = [entry for entry in self.entries if entry.left == 0]
        if not proven:
            return None
        target = proven[-1]
        if before is not None:
            early = [entry for entry in proven if entry.iter < before]
            target = early[-1] if early else proven[0]
        if self.cooling(now):
            older = self._older_than_last(proven) or proven[0]
            target = min(target, older, key=lambda entry: entry.iter)
        return target

    def cooling(self, now: int) -> bool:
        """Whether ``go_back`` was called at most ``cooldown`` iterations ago."""
        return self.last is not None and now - self.last[0] <= self.cooldown

    def _rotate(self, now: int) -> None:
        proven = [entry for entry in self.entries if entry.left == 0]
        # Within the cooldown it would be the next target.
        needed = self._older_than_last(proven) if self.cooling(now) else None
        kept = _ages_that_double(proven, self.keep)
        for entry in proven:
            if entry is not needed and entry not in kept:
                self.entries.remove(entry)
                self.reusable = entry.item

    def _older_than_last(self, proven: list[Entry[T]]) -> Entry[T] | None:
        last = self.last[1] if self.last is not None else 0
        return next((e for e in reversed(proven) if e.iter < last), None)


def _ages_that_double(entries: Sequence[Entry[T]], keep: int) -> list[Entry[T]]:
    """Of entries, the oldest first: the newest, and older ones by even numbers.

    The second is the newest whose number is even, the third whose number is divisible
    by four, and so on. One that will be needed so later is needed so now, so that none
    is missing when its time has come. As long as there are not so many, the newest.
    """
    kept: list[Entry[T]] = []
    for entry in reversed(entries):
        if len(kept) < keep and entry.number % 2 ** len(kept) == 0:
            kept.append(entry)
    rest = [entry for entry in reversed(entries) if entry not in kept]
    return kept + rest[: keep - len(kept)]
