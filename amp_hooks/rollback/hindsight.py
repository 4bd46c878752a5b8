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

    It knows of the last rollback what is counted of it, so that a resumed run looks at
    what the killed one had not come to.

    Args:
        runner: The run.
        attempts: Forgets that rollback.
        store: Need not go back further the next time.
        lr: Has the learning rate of before.

    Attributes:
        lr_rose: Before the last rollback. Then it stays lowered, whatever the data do.
    """

    def __init__(
        self, runner: Runner, attempts: Attempts, store: SnapshotStore, lr: LRPolicy
    ) -> None:
        self._runner, self._attempts = runner, attempts
        self._store, self._lr = store, lr
        self.lr_rose = False

    def look(self, runtime: Runtime, record: IterationRecord) -> bool:
        """After each iteration; on all ranks alike, for losses are each rank's own.

        Returns:
            Whether something was taken back.
        """
        if not self._attempts.done:
            return False
        since, target, verdict, _ = self._attempts.done[-1]
        due = verdict == Verdict.DIVERGED.value and record.iter - since in _LOOKS
        if not due or any_rank(not runtime.condition.in_vain):
            return False
        self._store.forget_last()
        self._attempts.forget_last()
        if not self.lr_rose:
            self._lr.give_back(self._runner)
        why = messages.in_vain(target)
        about = dict(lr_factor=self._lr.total, why=why)
        runtime.emit("recover", record.iter, record.verdict, **about)
        warn(messages.no_use(record.iter, why, self._lr.total))
        return True
