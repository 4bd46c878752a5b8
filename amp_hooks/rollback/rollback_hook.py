"""Go back to the last finite checkpoint when NaN stays."""

from __future__ import annotations

from functools import partial
from typing import Any

from mmengine.runner import Runner

from ..engine import private
from ..engine.by_design import ByDesign
from ..engine.checks import check_bool, check_int, check_number, check_optional_int
from ..engine.hook import AmpHook
from ..engine.messages import warn
from ..engine.recorder import IterationRecord
from ..engine.run import any_rank, bare_model
from ..engine.runtime import Runtime
from ..engine.supported import refuse_unsupported
from ..engine.verdict import Verdict
from ..registry import HOOKS
from . import messages
from .attempts import Attempts
from .checkpoint_guard import CheckpointGuard
from .go_back import GoBack, pin_static_scale
from .lr_policy import LRPolicy
from .policy import LR_FACTOR, PATIENCE, SHARE, WARMUP_ITERS, WINDOW, BadStreak
from .resumption import Resumption
from .ring import SnapshotRing
from .run_state import nonfinite_state
from .schedule import SnapshotSchedule
from .second_opinion import SecondOpinion
from .snapshot_store import SnapshotStore


@HOOKS.register_module()
class RollbackHook(AmpHook):
    """Takes verified snapshots; goes back on sustained NaN, and where a run diverged.

    *Snapshots.* One is a copy of the run in host memory: weights, buffers, optimizer,
    loss scale, EMA, schedulers, random number generators, the state of all hooks. It is
    taken before the first iteration and every ``interval``, never while
    :class:`HealthHook` finds the run watched or ill. It counts once it is finite, but
    for what never was, and ``probation`` healthy iterations have followed: what blows
    up has grown for a while. If a triggered :class:`HeadClampHook` had to clamp in
    them, that begins anew, up to nine times. A background thread then writes it to
    ``<work_dir>/rollback/iter_<N>.pth``, an ordinary MMEngine checkpoint.

    *Rollback.* An iteration is bad if its forward pass is not finite, or gradients
    where no loss scale is left to lower; NaN in a loss over finite gradients is not.
    After ``patience`` bad ones in a row, or ``share`` of the last ``window``, or at
    once if the learned state is not finite, it goes back to the newest snapshot that
    counts; within ``cooldown``, to an older one; where the run diverged, to before
    that. Loss scale and learning rate are lowered, and training goes on with the next
    batch: iteration, schedulers and logs never go back.

    *The learning rate* goes down by ``lr_factor``; where it had risen by more before
    the run diverged, to the highest that had gone well. It stays where it is not to
    blame: if it has gone well for ``keep_lr_after``; one iteration did it; it was only
    an evaluation; going back was of no use, which then does not count; with
    :class:`StepGuardHook`, the state holds NaN, no infinity; but not in ``cooldown``.

    *Resume* goes on, in the middle of an epoch too, from the newest checkpoint that is
    whole and finite; CheckpointHook writes no other, and no old one goes before that.

    Args:
        interval (int): Iterations between snapshots. Defaults to 500.
        patience (int): Bad iterations in a row that cause a rollback. Defaults to 3.
        window (int): Iterations looked back on. Defaults to 20.
        share (float): Bad share of them that causes one, in (0, 1]. Defaults to 0.35.
        scale_factor (float): Multiplies the snapshot's loss scale, in (0, 1], once for
            each rollback since; not below 1, or the guard's floor. Defaults to 0.5.
        lr_factor (float): Multiplies the learning rate of every group, now and for the
            rest of every schedule, in (0, 1]; dlib takes a tenth. Defaults to 0.1.
        keep_lr_after (int, optional): Healthy iterations since the learning rate last
            rose after which a rollback leaves it as it is; one kept in a tensor on a
            GPU is always lowered. Defaults to 2000; None: always lowered.
        warmup_iters (int): Iterations after a rollback in which a lowered learning rate
            is reached; 0 for none. Defaults to 100.
        recover_after (int, optional): Healthy iterations after which the learning rate
            is doubled, until it is what the config says. Defaults to None: never.
        reset_optimizer (bool): No momentum after a rollback. Defaults to False.
        max_rollbacks (int): In the whole run, resumes included. Defaults to 10.
        max_recent (int): Within ``recent_iters`` iterations. Defaults to 3.
        recent_iters (int): See ``max_recent``. Defaults to 5000.
        keep (int): Snapshots that are kept, in memory (two more) and on disk; their
            ages double (1, 2, 4, 8 intervals). At least 2. Defaults to 2.
        probation (int, optional): Healthy iterations until a snapshot counts, at most
            ``interval``. Defaults to None: 100, or ``interval`` if that is less.
        cooldown (int, optional): See above. Defaults to None: ``interval``.
        pin_memory (bool): Copy from the GPU into page-locked memory. Defaults to False.

    Raises:
        OSError: At the start of training, if work_dir cannot be written.
        RuntimeError: On resume, if all of the checkpoints are damaged.
        TrainingDivergedError: The state is not finite before the first iteration, or
            rollbacks, and PrecisionFallbackHook if there is one, are used up.

    Examples:
        >>> custom_hooks = [dict(type='amp_hooks.RollbackHook', interval=1000)]
    """

    priority = 40  # before EMAHook (50) can average what is about to be taken back

    def __init__(
        self,
        interval: int = 500,
        patience: int = PATIENCE,
        window: int = WINDOW,
        share: float = SHARE,
        scale_factor: float = 0.5,
        lr_factor: float = LR_FACTOR,
        keep_lr_after: int | None = 2000,
        warmup_iters: int = WARMUP_ITERS,
        recover_after: int | None = None,
        reset_optimizer: bool = False,
        max_rollbacks: int = 10,
        max_recent: int = 3,
        recent_iters: int = 5000,
        keep: int = 2,
        probation: int | None = None,
        cooldown: int | None = None,
        pin_memory: bool = False,
    ) -> None:
        owner = "RollbackHook"
        integer, number = partial(check_int, owner), partial(check_number, owner)
        optional = partial(check_optional_int, owner)
        self.interval = integer("interval", interval, 1)
        self.patience = integer("patience", patience, 1)
        self.window = integer("window", window, 1)
        self.share = number("share", share, 0, 1)
        self.scale_factor = number("scale_factor", scale_factor, 0, 1)
        self.lr_factor = number("lr_factor", lr_factor, 0, 1)
        self.keep_lr_after = optional("keep_lr_after", keep_lr_after, 1)
        self.warmup_iters = integer("warmup_iters", warmup_iters, 0)
        self.recover_after = optional("recover_after", recover_after, 1)
        self.reset_optimizer = check_bool(owner, "reset_optimizer", reset_optimizer)
        self.max_rollbacks = integer("max_rollbacks", max_rollbacks, 0)
        self.max_recent = integer("max_recent", max_recent, 0)
        self.recent_iters = integer("recent_iters", recent_iters, 1)
        self.keep = integer("keep", keep, 2)
        if probation is None:
            probation = min(100, interval)
        self.probation = integer("probation", probation, 0)
        if self.probation > self.interval:
            raise ValueError(
                f"{owner}: probation={self.probation} is longer than interval="
                f"{self.interval}, so that snapshots would never be proven in time. "
                "Lower probation or leave it out."
            )
        cooldown = interval if cooldown is None else cooldown
        self.cooldown = integer("cooldown", cooldown, 0)
        self.pin_memory = check_bool(owner, "pin_memory", pin_memory)
        # Policy state; it survives a resume.
        self.attempts = Attempts(self.max_rollbacks, self.max_recent, self.recent_iters)
        self._lr = LRPolicy(
            self.lr_factor, self.warmup_iters, self.recover_after, self.keep_lr_after
        )
        self._streak = BadStreak(self.patience, self.window, self.share)
        self._ring: SnapshotRing[Any] = SnapshotRing(
            self.keep, self.probation, self.cooldown
        )
        self._resumption, self._ignore = Resumption(), ByDesign()
        self.before_load = self._resumption.choose  # FlexibleRunner calls it
        self._schedule = SnapshotSchedule(self.interval)

    @property
    def rollbacks(self) -> int:
        """How often the run went back, resumes included."""
        return self.attempts.number

    @property
    def total_lr_factor(self) -> float:
        """What the learning rate has been multiplied by for good."""
        return self._lr.total

    def before_run(self, runner: Runner) -> None:
        """Choose what to resume from, before MMEngine does."""
        super().before_run(runner)
        self.before_load(runner)

    def attach(self, runner: Runner, runtime: Runtime) -> None:
        """Make sure that snapshots can be taken and written."""
        refuse_unsupported(self, runner)
        runtime.goes_back = True
        self.undo.callback(setattr, runtime, "goes_back", False)
        runtime.by_design.begin(bare_model(runner))
        self._ignore = runtime.by_design
        store = SnapshotStore(runner, self._ring, self.pin_memory, self._ignore)
        self._snapshots = store
        self.undo.callback(store.finish, diverged=True)  # waits for the last file
        self._go_back = GoBack(
            runner,
            store,
            self.attempts,
            self._lr,
            self.scale_factor,
            self.reset_optimizer,
        )
        opinion = SecondOpinion(runner, store, self.guarded)
        self._opinion = runtime.second_opinion = opinion
        self.undo.callback(self._opinion.detach)
        nonfinite = partial(nonfinite_state, runner, self._ignore)
        self._guard = CheckpointGuard(runner, nonfinite, self._snapshots.saved)
        self._guard.attach()
        self.undo.callback(self._guard.detach)
        runtime.averaging.attach(runner, self)
        runtime.tap.on_step.append(self.guarded(self._lr.attach(runner)))
        self.undo.callback(self._lr.end_iteration)  # of a warm-up, what it has lowered
        self._resumed = private.is_resumed(runner)
        self.attempts.open(self._snapshots.folder, self._resumed)
        self._judged = runner.iter - 1  # the last iteration before the present step
        self._resumption.begin(runner, self._resumed, self.rollbacks, self._lr.total)
        if self._resumed and self.rollbacks:
            pin_static_scale(runner)

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        """Take a snapshot between two iterations, where the whole run is consistent."""
        self._opinion.begin_iteration()
        self._resumption.restore_rng()
        self._snapshots.collect()
        calm = not self._streak.length
        nonfinite = self._schedule.take_what_is_due(
            runner, self._snapshots, self._resumed, calm, self._ignore
        )
        if nonfinite is not None:
            self._roll_back(Verdict.STATE_NONFINITE, nonfinite)
            self._schedule.write_after_rollback(self._snapshots)
        self._lr.begin_iteration(runner)

    def after_record(
        self, runner: Runner, runtime: Runtime, record: IterationRecord
    ) -> None:
        """Count bad iterations and roll back when they are too many."""
        self._lr.end_iteration()
        if self._go_back.hindsight.look(runtime, record):
            self._schedule.rolled_back()
        self._snapshots.clamp_needed |= bool(record.get("clamp_needed"))
        bad: list[str] = []
        now = record.iter
        at_once = record.verdict is Verdict.DIVERGED
        if record.verdict.is_bad:
            # Once for all iterations of a step.
            raised = record.verdict is Verdict.RAISED
            if (record.step_due or raised) and not record.get("gave_up"):
                self._streak.add(True)
            bad = nonfinite_state(runner, self._ignore)
            if any_rank(bool(bad)):
                record.verdict, at_once = Verdict.STATE_NONFINITE, True
        elif record.verdict is Verdict.HEALTHY and record.proves_something:
            self._streak.add(False)
            iterations = now - self._judged
            self._judged = now
            self._snapshots.healthy(iterations)
            if runtime.condition.well and self._lr.healthy(runner, iterations):
                factor = self.total_lr_factor
                runtime.emit("recover", now, record.verdict, lr_factor=factor)
                warn(messages.lr_raised(self.recover_after, factor, now))
        if record.step_due:
            self._judged = now
        if at_once or self._streak.too_many:
            self._roll_back(record.verdict, bad)
            runtime.averaging.undone = now
            record.step_due = True  # the accumulation begins anew
        record.put("rollbacks_total", self.rollbacks)
        record.put("lr_factor", self._lr.now(now))

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Take back the policy state and the random number generators."""
        super().after_load_checkpoint(runner, checkpoint)
        if private.resumes(runner):
            self._resumption.loaded(checkpoint)

    def after_train(self, runner: Runner) -> None:
        """A good end proves what is left, and needs no more than one file of it."""
        self._snapshots.finish()
        super().after_train(runner)

    def state(self) -> dict[str, Any]:
        """How often and how far the run was changed, as plain numbers."""
        return dict(
            rollbacks=self.attempts.done,
            lr=self._lr.state(),
            bad=self._streak.state(),
            last=self._ring.last,
            by_design=sorted(self._ignore.names),
        )

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on counting."""
        self.attempts.done = [list(attempt) for attempt in state["rollbacks"]]
        self._lr.load_state(state["lr"])
        self._streak.load_state(state["bad"])
        self._ring.last = tuple(state["last"]) if state["last"] else None

    def _roll_back(self, verdict: Verdict, nonfinite: list[str]) -> None:
        self._go_back(verdict, nonfinite)
        self._streak.clear()
        self._schedule.rolled_back()
