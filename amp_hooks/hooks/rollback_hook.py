"""Go back to the last finite checkpoint when NaN stays."""

from __future__ import annotations

from collections import deque
from typing import Any

import mmengine.dist as dist
from mmengine.runner import Runner

from ..adjust import lower_loss_scale, lower_lr, pin_static_scale
from ..checkpoint_guard import CheckpointGuard
from ..core.checks import check_int, check_number
from ..core.recorder import IterationRecord
from ..core.verdict import Verdict
from ..errors import TrainingDivergedError
from ..registry import HOOKS
from ..resume import choose_resume
from ..rollback_files import RollbackFiles
from ..runtime import Runtime, any_rank, refuse_sharded, warn
from ..snapshot import Snapshot, infinite_by_design, nonfinite_state
from ..step_tap import accumulating
from .base import AmpHook


@HOOKS.register_module()
class RollbackHook(AmpHook):
    """Takes verified snapshots, and rolls the learned state back on sustained NaN.

    A snapshot (weights, buffers, optimizer, loss scale, EMA) is taken before the first
    iteration and every ``interval`` iterations, kept in memory and written to
    ``<work_dir>/rollback/iter_<N>.pth``. It counts only if every value in it is finite,
    in memory and in the file read back. ``<work_dir>/last_checkpoint`` names the newest
    one, so ``resume=True`` or ``--resume`` continues from it.

    An iteration is bad if loss or logits are not finite, or gradients where no loss
    scale is left to lower. After ``patience`` bad ones in a row, or at once if the
    learned state itself is not finite, the state goes back to the newest snapshot, the
    loss scale and the learning rate are lowered, and training goes on with the next
    batch: iteration, schedulers and logs never go back. If that snapshot fails too, the
    next target is the one before it. An ordinary overflow of a dynamic loss scale is
    not bad.

    Args:
        interval (int): Iterations between snapshots. Defaults to 500.
        patience (int): Bad iterations in a row that cause a rollback. Defaults to 3.
        scale_factor (float): Multiplies the snapshot's loss scale at a rollback, in
            (0, 1]; the scale is not taken below 1, or StepGuardHook's floor. Defaults
            to 0.5.
        lr_factor (float): Multiplies the learning rate of every group, now and for the
            rest of every schedule, at a rollback, in (0, 1]; a tenth is what dlib takes
            when training diverges. Defaults to 0.1.
        max_rollbacks (int): In the whole run, resumes included. The next one that is
            needed raises TrainingDivergedError. Defaults to 3.
        keep (int): Snapshots kept, in memory and on disk. Defaults to 2.

    Raises:
        OSError: At the start of training, if work_dir cannot be written.
        TrainingDivergedError: The state is not finite before the first iteration, or
            the rollbacks are used up.

    Examples:
        >>> custom_hooks = [dict(type='amp_hooks.RollbackHook', interval=1000)]
    """

    priority = 40  # before EMAHook (50) can average what is about to be taken back

    def __init__(
        self,
        interval: int = 500,
        patience: int = 3,
        scale_factor: float = 0.5,
        lr_factor: float = 0.1,
        max_rollbacks: int = 3,
        keep: int = 2,
    ) -> None:
        owner = "RollbackHook"
        self.interval = check_int(owner, "interval", interval, 1)
        self.patience = check_int(owner, "patience", patience, 1)
        self.scale_factor = check_number(owner, "scale_factor", scale_factor, 0, 1)
        self.lr_factor = check_number(owner, "lr_factor", lr_factor, 0, 1)
        self.max_rollbacks = check_int(owner, "max_rollbacks", max_rollbacks, 0)
        self.keep = check_int(owner, "keep", keep, 1)
        # Policy state; it survives a resume.
        self.rollbacks = 0
        self.total_lr_factor = 1.0
        # State of this process.
        self._streak = 0
        self._snapshots: deque[Snapshot] = deque(maxlen=self.keep)
        self._snapshot_due = True
        self._file_due = False
        self._ignore: frozenset[str] = frozenset()

    def before_run(self, runner: Runner) -> None:
        """Choose what to resume from, before MMEngine does."""
        choose_resume(runner)

    def attach(self, runner: Runner, runtime: Runtime) -> None:
        """Make sure that snapshots can be taken and written."""
        refuse_sharded(self, runner)
        self._files = RollbackFiles(runner.work_dir, self.keep)
        if dist.is_main_process():
            self._files.prepare(runner.iter)
        self._ignore = infinite_by_design(runner)
        self._guard = CheckpointGuard(
            runner,
            lambda: nonfinite_state(runner, self._ignore),
            self._files.pointer.offer,
        )
        self._guard.attach()
        if runner._resume and runner.iter:
            if self.rollbacks:
                pin_static_scale(runner)
            runtime.emit("resume", runner.iter, Verdict.HEALTHY, **self.state())

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        """Take a snapshot between two iterations, where the whole run is consistent."""
        self._snapshot_due |= runner.iter % self.interval == 0
        if self._streak or accumulating(runner.optim_wrapper):
            return  # as soon as it is over
        runtime = Runtime.of(runner)
        if self._snapshot_due:
            bad = nonfinite_state(runner, self._ignore)
            if any_rank(bool(bad)):
                self._roll_back(runner, runtime, Verdict.STATE_NONFINITE, bad)
            else:
                self._snapshots.append(Snapshot.take(runner))
                self._snapshot_due, self._file_due = False, True
        if self._file_due:
            self._write(runner, runtime)
            self._file_due = False

    def after_record(
        self, runner: Runner, runtime: Runtime, record: IterationRecord
    ) -> None:
        """Count bad iterations and roll back when they are too many."""
        if record.verdict.is_bad:
            self._streak += 1
            bad = nonfinite_state(runner, self._ignore)
            if any_rank(bool(bad)):
                record.verdict = Verdict.STATE_NONFINITE
                self._roll_back(runner, runtime, record.verdict, bad)
            elif self._streak >= self.patience:
                self._roll_back(runner, runtime, record.verdict, bad)
        elif record.verdict is Verdict.HEALTHY and record.stepped:
            self._streak = 0
        record.put("rollbacks_total", self.rollbacks)
        record.put("lr_factor", self.total_lr_factor)

    def after_train(self, runner: Runner) -> None:
        """Give CheckpointHook back as it was."""
        self._guard.detach()
        super().after_train(runner)

    def state(self) -> dict[str, Any]:
        """How often and how far the run was changed."""
        return dict(rollbacks=self.rollbacks, lr_factor=self.total_lr_factor)

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on counting."""
        self.rollbacks = int(state["rollbacks"])
        self.total_lr_factor = float(state["lr_factor"])

    def _write(self, runner: Runner, runtime: Runtime) -> None:
        if not dist.is_main_process():
            return
        path = self._files.try_write(runner, self._ignore)
        if path is not None:
            runtime.emit("snapshot", runner.iter, Verdict.HEALTHY, file=path)

    def _roll_back(
        self, runner: Runner, runtime: Runtime, verdict: Verdict, bad: list[str]
    ) -> None:
        where = f" ({', '.join(bad[:3])}, {len(bad)} in all)" if bad else ""
        if not self._snapshots:
            raise TrainingDivergedError(
                f"the state is not finite before the first iteration{where}: there is "
                "nothing to roll back to. Check load_from or the checkpoint resumed."
            )
        if self.rollbacks >= self.max_rollbacks:
            self._give_up(runner, runtime, verdict, where)
        # The newest one; if the fault returns before the next is taken, an older one.
        target = self._snapshots[-1]
        if len(self._snapshots) > 1:
            self._snapshots.pop()
        target.restore(runner)
        scale = lower_loss_scale(runner, self.scale_factor, runtime.scale_floor)
        lower_lr(runner, self.lr_factor)
        self.rollbacks += 1
        self.total_lr_factor *= self.lr_factor
        self._streak = 0
        self._file_due = True  # so that a kill does not lose the count
        runtime.forget_window()
        runtime.emit(
            "rollback",
            runner.iter,
            verdict,
            target_iter=target.iter,
            **self.state(),
            scale=scale,
            nonfinite_state=bad[:5],
        )
        warn(
            f"rollback {self.rollbacks} of {self.max_rollbacks} at iteration "
            f"{runner.iter}: {verdict.value}{where}. Weights, optimizer, loss scale "
            f"and EMA are back at iteration {target.iter}; learning rate now "
            f"x{self.total_lr_factor:g}"
            + (f", loss scale {scale:g}" if scale is not None else "")
            + ". Training goes on with the next batch. If this repeats, lower the "
            "learning rate or lengthen the warm-up."
        )

    def _give_up(
        self, runner: Runner, runtime: Runtime, verdict: Verdict, where: str
    ) -> None:
        checkpoint = self._files.newest if dist.is_main_process() else None
        runtime.emit(
            "abort",
            runner.iter,
            verdict,
            **self.state(),
            checkpoint=checkpoint,
        )
        raise TrainingDivergedError(
            f"training diverged at iteration {runner.iter}: {verdict.value}{where}. "
            f"Tried: {self.rollbacks} rollbacks (max_rollbacks={self.max_rollbacks}), "
            f"learning rate x{self.total_lr_factor:g}. The last good checkpoint is "
            f"{checkpoint or 'in the work_dir of rank 0'}. Resume from it with a "
            "lower learning rate, a longer warm-up, gradient clipping or BF16."
        )
