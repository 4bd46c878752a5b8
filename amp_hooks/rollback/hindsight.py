"""Was it of any use to go back?"""

from __future__ import annotations

from mmengine.runner import Runner

from ..engine.messages import warn
from ..engine.recorder import IterationRecord
from ..engine.run import any_rank
from ..engine.runtime import Runtime
from ..engine.verdict import Verdict
from . import messages
from .attempts import Attempts
from .lr_policy import LRPolicy
from .snapshot_store import SnapshotStore

# Iterations after a rollback: HealthHook has seen five losses, or some were bad.
_LOOKS = (5, 10)


class Hindsight:
    """Takes back what a rollback did to the rest of the run where it was of no use.

    Weights that cost little when they were copied, and cost as much now as those that
    were given up for them, are not what has changed: it is the data, or a hook that
    prunes. Then the learning rate was not to blame, and to go back again would not
    help either. Training goes on from there as it would have without us.

    Args:
        runner: The run.
        attempts: Forgets that rollback.
        store: Need not go back further the next time.
        lr: Has the learning rate of before.
    """

    def __init__(
        self, runner: Runner, attempts: Attempts, store: SnapshotStore, lr: LRPolicy
    ) -> None:
        self._runner, self._attempts = runner, attempts
        self._store, self._lr = store, lr
        self._since: int | None = None  # the last rollback, where the run had diverged
        self._target = 0

    def rolled_back(self, verdict: Verdict, now: int, target: int) -> None:
        """The run went back."""
        self._since = now if verdict is Verdict.DIVERGED else None
        self._target = target

    def look(self, runtime: Runtime, record: IterationRecord) -> None:
        """After each iteration; on all ranks alike, for losses are each rank's own."""
        if self._since is None or record.iter - self._since not in _LOOKS:
            return
        if any_rank(not runtime.condition.in_vain):
            return
        self._since = None
        self._store.forget_last()
        self._attempts.forget_last()
        self._lr.give_back(self._runner)
        why = messages.in_vain(self._target)
        about = dict(lr_factor=self._lr.total, why=why)
        runtime.emit("recover", record.iter, record.verdict, **about)
        warn(messages.no_use(record.iter, why, self._lr.total))
