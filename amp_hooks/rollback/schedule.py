"""When a snapshot is taken."""

from __future__ import annotations

from collections.abc import Container

from mmengine.runner import Runner

from ..engine import private
from ..engine.averaging import begin_with_the_weights
from ..engine.run import accumulating, any_rank
from ..engine.runtime import Runtime
from .run_state import nonfinite_state
from .snapshot_store import SnapshotStore


class SnapshotSchedule:
    """One before the first iteration, one every interval, and a file after a rollback.

    Args:
        interval: Iterations between snapshots.
    """

    def __init__(self, interval: int) -> None:
        self._interval = interval
        self._first, self._due = True, True
        self._after_rollback = False  # the new counts must get into a file

    def make_due(self) -> None:
        """The next opportunity is taken, wherever in the interval."""
        self._due = True

    def rolled_back(self) -> None:
        """The state is a snapshot's: the next one waits for the next interval."""
        self._due, self._after_rollback = False, True

    def take_what_is_due(
        self,
        runner: Runner,
        store: SnapshotStore,
        resumed: bool,
        calm: bool,
        ignore: Container[str],
    ) -> list[str] | None:
        """Take it, between two iterations, where the whole run is consistent.

        Args:
            runner: The run.
            store: Takes and keeps the snapshots.
            resumed: The run was read from a file.
            calm: The last iteration was not bad.
            ignore: What may hold NaN or infinity, by its name in the learned state.

        Returns:
            If there should have been one and the learned state is not finite, on this
            rank or another: what is not finite here. No snapshot is taken then.
        """
        self._due |= private.iteration(runner) % self._interval == 0
        if not (self._due or self._after_rollback):
            return None
        # In a new process nothing has been accumulated, wherever it was resumed.
        if not self._first and accumulating(runner.optim_wrapper):
            return None
        waits = self._after_rollback or store.on_probation
        if self._due and (self._first or (calm and not waits)):
            if not self._first and any_rank(not Runtime.of(runner).condition.well):
                return None  # what may be sick is not kept
            self._due = False
            if self._first:
                begin_with_the_weights(runner)
            nonfinite = nonfinite_state(runner, ignore)
            if any_rank(bool(nonfinite)):
                return nonfinite
            # What a run begins with is proven; a resumed one has read it from disk.
            write = not (self._first and resumed)
            store.take(proven=self._first, write=write)
            self._first = False
        self.write_after_rollback(store)
        return None

    def write_after_rollback(self, store: SnapshotStore) -> None:
        """A file with the new counts and learning rate, so that a kill keeps them.

        What was learned is the target's, which is in the ring already.
        """
        if self._after_rollback:
            self._after_rollback = False
            store.take(proven=True, keep=False)
