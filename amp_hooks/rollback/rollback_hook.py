"""Go back to the last finite checkpoint when NaN stays."""

from __future__ import annotations

from typing import Any

import mmengine.dist as dist
from mmengine.runner import Runner

from ..engine.averaging import begin_with_the_weights
from ..engine.checks import check_bool, check_int, check_number, check_optional_int
from ..engine.hook import CHECKPOINT_KEY, AmpHook
from ..engine.messages import warn
from ..engine.model import refuse_sharded
from ..engine.ranks import any_rank
from ..engine.recorder import IterationRecord
from ..engine.rng import set_rng_state
from ..engine.runtime import Runtime
from ..engine.verdict import Verdict
from ..engine.wrappers import accumulating
from ..errors import TrainingDivergedError
from ..registry import HOOKS
from .adjust import lower_loss_scale, pin_static_scale
from .attempts import Attempts
from .bad_streak import BadStreak
from .checkpoint_guard import CheckpointGuard
from .lr_policy import LRPolicy
from .resume import choose_resume
from .ring import SnapshotRing
from .run_state import Snapshot, infinite_by_design, nonfinite_state, overflowed
from .snapshot_store import Snapshots


@HOOKS.register_module()
class RollbackHook(AmpHook):
    """Takes verified snapshots, and rolls the learned state back on sustained NaN.

    *Snapshots.* A snapshot is a copy of the run in host memory: weights, buffers,
    optimizer, loss scale, EMA, schedulers, random number generators, and the state of
    all hooks. One is taken before the first iteration and every ``interval``
    iterations. It counts once every value in it is finite and ``probation`` healthy
    iterations have followed, for what blows up has grown for a while. Were there some
    in which a :class:`HeadClampHook` was on by need and had to clamp, probation begins
    anew, up to nine times. Then a background thread writes the snapshot to
    ``<work_dir>/rollback/iter_<N>.pth``, an ordinary MMEngine checkpoint, and reads it
    back. A disk that fails costs the file, not the run.

    *Rollback.* An iteration is bad if loss or logits are not finite, or gradients where
    no loss scale is left to lower; an ordinary overflow of a dynamic loss scale is not.
    After ``patience`` bad ones in a row, or ``share`` of the last ``window``, or at
    once if the learned state itself is not finite, the state goes back to the newest
    snapshot that counts; if the fault returns within ``cooldown`` iterations, to an
    older one. Loss scale and learning rate are lowered, and training goes on with the
    next batch: iteration, schedulers and logs never go back.

    *The learning rate stays* where it is not to blame: one that is too high overflows
    soon. So it stays if ``keep_lr_after`` healthy iterations have passed since it last
    rose, and since the last rollback. And where :class:`StepGuardHook` checks every
    step, a state that holds NaN, and no infinity to which finite numbers may have
    overflowed, was broken by something else, unless that happens again within
    ``cooldown``.

    *Resume.* ``resume=True`` or ``--resume`` continues from the newest checkpoint that
    is whole and finite, of this hook or of CheckpointHook; others are passed over and
    named. ``<work_dir>/last_checkpoint`` names such a one at any time. CheckpointHook
    writes no checkpoint that is not finite, and removes an old one only after the new
    one is on the disk.

    Args:
        interval (int): Iterations between snapshots. Defaults to 500.
        patience (int): Bad iterations in a row that cause a rollback. Defaults to 3.
        window (int): Iterations looked back on. Defaults to 20.
        share (float): Bad share of them that causes a rollback, in (0, 1]. Defaults to
            0.35, which is 7 of 20.
        scale_factor (float): Multiplies the snapshot's loss scale at a rollback, in
            (0, 1], once for every rollback since it was taken; the scale is not taken
            below 1, or StepGuardHook's floor. Defaults to 0.5.
        lr_factor (float): Multiplies the learning rate of every group, now and for the
            rest of every schedule, at a rollback, in (0, 1]; a tenth is what dlib takes
            when training diverges. Defaults to 0.1.
        keep_lr_after (int, optional): Healthy iterations since the learning rate last
            rose after which a rollback leaves it as it is; one kept in a tensor on a
            GPU is always lowered. Defaults to 2000; None: always lowered.
        warmup_iters (int): Iterations after a rollback in which a lowered learning rate
            is reached; 0 for none. Defaults to 100.
        recover_after (int, optional): Healthy iterations after which the learning rate
            is doubled, again and again until it is what the config says. Defaults to
            None: never.
        reset_optimizer (bool): Start without momentum after a rollback, instead of the
            snapshot's. Defaults to False.
        max_rollbacks (int): In the whole run, resumes included. Defaults to 10.
        max_recent (int): Within ``recent_iters`` iterations. Defaults to 3.
        recent_iters (int): See ``max_recent``. Defaults to 5000.
        keep (int): Snapshots kept that count, in memory and on disk; in memory there
            are up to two more, on probation and being written. At least 2. Defaults to
            2.
        probation (int, optional): Healthy iterations until a snapshot counts, at most
            ``interval``. Defaults to None: 100, or ``interval`` if that is less.
        cooldown (int, optional): See above. Defaults to None: ``interval``.
        pin_memory (bool): Copy from the GPU into page-locked memory, which is faster
            and takes that memory from the rest of the machine. Defaults to False.

    Raises:
        OSError: At the start of training, if work_dir cannot be written.
        RuntimeError: On resume, if there are checkpoints and all of them are damaged.
        TrainingDivergedError: The state is not finite before the first iteration, or
            the rollbacks are used up and PrecisionFallbackHook, if there is one, has
            nothing left to try.

    Examples:
        >>> custom_hooks = [dict(type='amp_hooks.RollbackHook', interval=1000)]
    """

    priority = 40  # before EMAHook (50) can average what is about to be taken back

    def __init__(
        self,
        interval: int = 500,
        patience: int = 3,
        window: int = 20,
        share: float = 0.35,
        scale_factor: float = 0.5,
        lr_factor: float = 0.1,
        keep_lr_after: int | None = 2000,
        warmup_iters: int = 100,
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
        self.interval = check_int(owner, "interval", interval, 1)
        self.patience = check_int(owner, "patience", patience, 1)
        self.window = check_int(owner, "window", window, 1)
        self.share = check_number(owner, "share", share, 0, 1)
        self.scale_factor = check_number(owner, "scale_factor", scale_factor, 0, 1)
        self.lr_factor = check_number(owner, "lr_factor", lr_factor, 0, 1)
        self.keep_lr_after = check_optional_int(
            owner, "keep_lr_after", keep_lr_after, 1
        )
        self.warmup_iters = check_int(owner, "warmup_iters", warmup_iters, 0)
        self.recover_after = check_optional_int(
            owner, "recover_after", recover_after, 1
        )
        self.reset_optimizer = check_bool(owner, "reset_optimizer", reset_optimizer)
        self.max_rollbacks = check_int(owner, "max_rollbacks", max_rollbacks, 0)
        self.max_recent = check_int(owner, "max_recent", max_recent, 0)
        self.recent_iters = check_int(owner, "recent_iters", recent_iters, 1)
        self.keep = check_int(owner, "keep", keep, 2)
        if probation is None:
            probation = min(100, interval)
        self.probation = check_int(owner, "probation", probation, 0)
        if self.probation > self.interval:
            raise ValueError(
                f"{owner}: probation={self.probation} is longer than interval="
                f"{self.interval}, so that snapshots would never be proven in time. "
                "Lower probation or leave it out."
            )
        self.cooldown = check_int(
            owner, "cooldown", interval if cooldown is None else cooldown, 0
        )
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
        # State of this process.
        self._rng: list[dict[str, Any]] = []  # to be taken back
        self._first, self._due, self._resumed = True, True, False
        self._judged = -1  # the last iteration of the last window
        self._after_rollback = False  # the new counts must get into a file
        self._ignore: frozenset[str] = frozenset()

    @property
    def rollbacks(self) -> int:
        """How often the run went back, resumes included."""
        return len(self.attempts.done)

    @property
    def total_lr_factor(self) -> float:
        """What the learning rate has been multiplied by for good."""
        return self._lr.total

    def before_run(self, runner: Runner) -> None:
        """Choose what to resume from, before MMEngine does."""
        choose_resume(runner)

    def attach(self, runner: Runner, runtime: Runtime) -> None:
        """Make sure that snapshots can be taken and written."""
        refuse_sharded(self, runner)
        self._ignore = infinite_by_design(runner)
        self._snapshots = Snapshots(runner, self._ring, self.pin_memory, self._ignore)
        self._guard = CheckpointGuard(
            runner,
            lambda: nonfinite_state(runner, self._ignore),
            self._snapshots.saved,
        )
        self._guard.attach()
        runtime.averaging.attach(runner, self)
        self._resumed = bool(runner._resume and runner._has_loaded)
        self.attempts.open(self._snapshots.folder, self._resumed)
        self._judged = runner.iter - 1
        if self._resumed:
            if self.rollbacks:
                pin_static_scale(runner)
            runtime.emit(
                "resume",
                runner.iter,
                Verdict.HEALTHY,
                rollbacks=self.rollbacks,
                lr_factor=self.total_lr_factor,
                checkpoint=runner._load_from,
            )

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        """Take a snapshot between two iterations, where the whole run is consistent."""
        self._take_back_rng()
        self._snapshots.collect()
        self._due |= runner.iter % self.interval == 0
        # In a new process nothing has been accumulated, wherever it was resumed.
        if self._first or not accumulating(runner.optim_wrapper):
            self._take_what_is_due(runner)
        self._lr.begin_iteration(runner)

    def after_record(
        self, runner: Runner, runtime: Runtime, record: IterationRecord
    ) -> None:
        """Count bad iterations and roll back when they are too many."""
        self._lr.end_iteration()
        self._snapshots.strained |= bool(record.get("clamp_strained"))
        bad: list[str] = []
        state_is_bad = False
        window_ends = not accumulating(runner.optim_wrapper)
        if record.verdict.is_bad:
            # Once for all iterations of a window: they share the fault of one of them.
            if window_ends or record.verdict is Verdict.RAISED:
                self._streak.add(True)
            bad = nonfinite_state(runner, self._ignore)
            if state_is_bad := any_rank(bool(bad)):
                record.verdict = Verdict.STATE_NONFINITE
        elif record.verdict is Verdict.HEALTHY and record.stepped:
            self._streak.add(False)
            iterations = runner.iter - self._judged
            self._judged = runner.iter
            self._snapshots.healthy(iterations)
            if self._lr.healthy(runner, iterations):
                self._tell_recovery(runner, runtime)
        if window_ends:
            self._judged = runner.iter
        if state_is_bad or self._streak.too_many:
            self._roll_back(runner, runtime, record.verdict, bad)
            runtime.averaging.undone = runner.iter
        record.put("rollbacks_total", self.rollbacks)
        record.put("lr_factor", self._lr.now(runner.iter))

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Take back the policy state and the random number generators."""
        super().after_load_checkpoint(runner, checkpoint)
        if runner._resume:
            self._rng = checkpoint.get(CHECKPOINT_KEY, {}).get("rng", [])

    def after_train(self, runner: Runner) -> None:
        """Wait for the last file, and leave everything as it was."""
        self._snapshots.finish()
        self._guard.detach()
        super().after_train(runner)

    def state(self) -> dict[str, Any]:
        """How often and how far the run was changed, as plain numbers."""
        return dict(
            rollbacks=self.attempts.done,
            lr=self._lr.state(),
            bad=self._streak.state(),
            last=self._ring.last,
        )

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on counting."""
        self.attempts.done = [list(attempt) for attempt in state["rollbacks"]]
        self._lr.load_state(state["lr"])
        self._streak.load_state(state["bad"])
        self._ring.last = tuple(state["last"]) if state["last"] else None

    def _take_what_is_due(self, runner: Runner) -> None:
        waits = self._after_rollback or self._ring.on_probation
        calm = not self._streak.length and not waits
        if self._due and (self._first or calm):
            self._due = False
            if self._first:
                begin_with_the_weights(runner)
            bad = nonfinite_state(runner, self._ignore)
            if any_rank(bool(bad)):
                runtime = Runtime.of(runner)
                self._roll_back(runner, runtime, Verdict.STATE_NONFINITE, bad)
            else:
                # What a run begins with is proven; a resumed one has read it from disk.
                write = not (self._first and self._resumed)
                self._snapshots.take(proven=self._first, write=write)
                self._first = False
        if self._after_rollback:
            # A file with the new counts and learning rate, so that a kill does not lose
            # them. What was learned is the target's, which is in the ring already.
            self._after_rollback = False
            self._snapshots.take(proven=True, keep=False)

    def _roll_back(
        self, runner: Runner, runtime: Runtime, verdict: Verdict, bad: list[str]
    ) -> None:
        where = f" ({', '.join(bad[:3])}, {len(bad)} in all)" if bad else ""
        limit = self.attempts.used_up(runner.iter)
        if limit and not self._last_resort(runtime, verdict):
            self._give_up(runner, runtime, verdict, where, limit)
        kept = self._why_lr_stays(runner, verdict, bad)
        target = self._snapshots.go_back(runner.iter)
        if target is None:
            raise TrainingDivergedError(
                f"{verdict.value}{where} at iteration {runner.iter}, and no snapshot "
                "to roll back to: the state was not finite before the first iteration, "
                "or there was no memory for a copy of it. Check load_from, the "
                "checkpoint resumed, and the log."
            )
        # Counted first, so that a kill at any moment gives no extra attempt.
        self.attempts.add(runner.iter, target.iter, verdict.value, bool(limit))
        target.restore(runner, self.reset_optimizer)
        # Its scale knows nothing of the rollbacks since it was taken.
        factor = self.scale_factor ** self.attempts.since(target.iter)
        scale = lower_loss_scale(runner, factor, runtime.scale_floor)
        self._lr.rolled_back(runner, lower=not kept)
        self._streak.clear()
        self._due, self._after_rollback = False, True
        runtime.forget_window()
        runtime.emit(
            "rollback",
            runner.iter,
            verdict,
            target_iter=target.iter,
            rollbacks=self.rollbacks,
            lr_factor=self.total_lr_factor,
            scale=scale,
            nonfinite_state=bad[:5],
        )
        self._tell(runner, verdict, where, target, scale, kept)

    def _why_lr_stays(self, runner: Runner, verdict: Verdict, bad: list[str]) -> str:
        """In words, or '' if the learning rate is to blame."""
        if self._came_from_outside(runner, verdict, bad):
            return "no step did this"
        if self._lr.trust.cleared:
            return f"it has gone well for {self.keep_lr_after} iterations"
        return ""

    def _came_from_outside(
        self, runner: Runner, verdict: Verdict, bad: list[str]
    ) -> bool:
        """Whether something else than training made the state non-finite.

        Where every step is guarded, training does not make NaN; unless the fault is
        back. It can make infinities, all losses and gradients being finite: of
        BatchNorm's statistics, Adam's squares, or a weight, which finite numbers
        overflow to; NaN made from these comes with them.
        """
        guarded = Runtime.of(runner).tap.gate is not None
        state = verdict is Verdict.STATE_NONFINITE
        if not (guarded and state) or self._ring.cooling(runner.iter):
            return False
        return not any_rank(overflowed(runner, bad))

    def _last_resort(self, runtime: Runtime, verdict: Verdict) -> bool:
        resorts = runtime.last_resorts if self.attempts.may_have_extra else []
        return any(resort(verdict, self.rollbacks + 1) for resort in resorts)

    def _tell(
        self,
        runner: Runner,
        verdict: Verdict,
        where: str,
        target: Snapshot,
        scale: float | None,
        kept: str,
    ) -> None:
        learning_rate = f"now x{self.total_lr_factor:g}"
        if kept:
            learning_rate = f"unchanged, for {kept}"
        elif self.warmup_iters:
            learning_rate += f", reached in {self.warmup_iters} iterations"
        warn(
            f"rollback {self.rollbacks} of {self.max_rollbacks} at iteration "
            f"{runner.iter}: {verdict.value}{where}. Weights, optimizer, loss scale "
            f"and EMA are back at iteration {target.iter}; learning rate "
            f"{learning_rate}"
            + (f", loss scale {scale:g}" if scale is not None else "")
            + ". Training goes on with the next batch. If this repeats, lower the "
            "learning rate or lengthen the warm-up."
        )

    def _give_up(
        self, runner: Runner, runtime: Runtime, verdict: Verdict, where: str, limit: str
    ) -> None:
        self._snapshots.finish(diverged=True)
        # The other ranks wait here: if one of them ended, so would the one that writes.
        told = [self._snapshots.pointer.named if dist.is_main_process() else None]
        dist.broadcast_object_list(told)
        checkpoint = told[0] or "missing, for none could be written"
        runtime.emit(
            "abort",
            runner.iter,
            verdict,
            rollbacks=self.rollbacks,
            lr_factor=self.total_lr_factor,
            limit=limit,
            checkpoint=checkpoint,
        )
        raise TrainingDivergedError(
            f"training diverged at iteration {runner.iter}: {verdict.value}{where}. "
            f"Tried: {self.rollbacks} rollbacks, {self.attempts.told() or 'none'}; "
            f"learning rate x{self.total_lr_factor:g}. {limit} allows no more. The "
            f"last good checkpoint is {checkpoint}. Begin with its weights (load_from, "
            "without resume) at a lower learning rate or with a longer warm-up; or "
            "resume from it with gradient clipping or in BF16, and with a higher limit."
        )

    def _tell_recovery(self, runner: Runner, runtime: Runtime) -> None:
        factor = self.total_lr_factor
        runtime.emit("recover", runner.iter, Verdict.HEALTHY, lr_factor=factor)
        warn(
            f"{self.recover_after} healthy iterations: learning rate now x{factor:g} "
            f"at iteration {runner.iter}."
        )

    def _take_back_rng(self) -> None:
        """In the first iteration after a resume, where the snapshot was taken."""
        saved, self._rng = self._rng, []
        if len(saved) != dist.get_world_size():
            return
        try:
            set_rng_state(saved[dist.get_rank()])
        except (KeyError, TypeError, ValueError, RuntimeError) as e:
            warn(f"random number generators start anew, not from the checkpoint: {e!r}")
