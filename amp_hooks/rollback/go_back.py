"""Go back to a good snapshot, with a lower loss scale and learning rate, or give up."""

from __future__ import annotations

import mmengine.dist as dist
from mmengine.runner import Runner

from ..engine import private
from ..engine.condition import Condition
from ..engine.messages import warn
from ..engine.run import active_scaler, any_rank, iter_wrappers, of_all_ranks
from ..engine.runtime import Runtime
from ..engine.verdict import Verdict
from ..errors import TrainingDivergedError
from . import messages
from .attempts import Attempts
from .hindsight import Hindsight
from .lr_policy import LRPolicy
from .policy import returned_at_once
from .run_state import overflowed
from .snapshot_store import SnapshotStore


class GoBack:
    """Takes a run back, on every rank alike.

    Args:
        runner: The run.
        store: Has the snapshots.
        attempts: Counts the rollbacks and knows the limits.
        lr: What a rollback does to the learning rate.
        scale_factor: Multiplies the snapshot's loss scale, once for every rollback
            since it was taken.
        reset_optimizer: Start without momentum.

    Attributes:
        hindsight: Whether it was of any use.
    """

    def __init__(
        self,
        runner: Runner,
        store: SnapshotStore,
        attempts: Attempts,
        lr: LRPolicy,
        scale_factor: float,
        reset_optimizer: bool,
    ) -> None:
        self._runner, self._store = runner, store
        self._attempts, self._lr = attempts, lr
        self.hindsight = Hindsight(runner, attempts, store, lr)
        self._scale_factor, self._reset_optimizer = scale_factor, reset_optimizer

    def __call__(self, verdict: Verdict, nonfinite: list[str]) -> None:
        """Go back now.

        Args:
            verdict: Why.
            nonfinite: Tensors of the learned state that are not finite.

        Raises:
            TrainingDivergedError: The limits allow no more, or there is no snapshot.
        """
        runner, runtime = self._runner, Runtime.of(self._runner)
        by_design = runtime.by_design
        if by_design.learned and not by_design.settled:
            # There was no healthy step: nothing has shown that they do no harm.
            named = messages.where_text(by_design.learned)
            raise TrainingDivergedError(
                messages.no_snapshot(runner.iter, verdict.in_words, named)
            )
        where = messages.where_text(nonfinite)
        if verdict is Verdict.RAISED and runtime.errors.last is not None:
            where += f": {runtime.errors.last.text}"
        # NaN may be but the end of an illness that had been seen before.
        ill = of_all_ranks(runtime.condition)
        if ill.why:
            where += f": {ill.why}"
        limit = self._attempts.used_up(runner.iter)
        if limit and not self._last_resort(runtime, verdict):
            self._give_up(runtime, verdict, where, limit)
        kept = self._why_lr_stays(runtime, verdict, nonfinite, ill)
        target = self._store.go_back(runner.iter, ill.since)
        if target is None:
            raise TrainingDivergedError(
                messages.no_snapshot(runner.iter, verdict.in_words, where)
            )
        # Counted first, so that a kill at any moment gives no extra attempt.
        self._attempts.add(runner.iter, target.iter, verdict.value, bool(limit))
        target.restore(runner, self._reset_optimizer)
        # Its scale knows nothing of the rollbacks since it was taken.
        factor = self._scale_factor ** self._attempts.since(target.iter)
        cost = self._store.cost
        scale = lower_loss_scale(runner, factor, runtime.scale_floor)
        self._lr.rolled_back(runner, lower=not kept, rise=ill.lr_rise)
        self.hindsight.lr_rose = ill.lr_rose
        runtime.forget_accumulation()
        runtime.emit(
            "rollback",
            runner.iter,
            verdict,
            target_iter=target.iter,
            rollbacks=self._attempts.number,
            lr_factor=self._lr.total,
            scale=scale,
            nonfinite_state=nonfinite[:5],
            **(dict(why=ill.why) if ill.why else {}),
            **(dict(target_level=cost) if cost is not None else {}),
        )
        warn(
            messages.rolled_back(
                number=self._attempts.counted(runner.iter),
                now=runner.iter,
                target=target.iter,
                verdict=verdict.in_words,
                where=where,
                lr_factor=self._lr.total,
                lr_kept=kept,
                warmup_iters=self._lr.warmup_iters,
                scale=scale,
            )
        )

    def _why_lr_stays(
        self,
        runtime: Runtime,
        verdict: Verdict,
        nonfinite: list[str],
        ill: Condition,
    ) -> str:
        """In words, or '' if the learning rate is to blame."""
        if self._came_from_outside(runtime, verdict, nonfinite):
            return "no step did this"
        cooling = self._store.cooling(self._runner.iter)
        if ill.sudden and not cooling:
            return "one iteration did this"
        if verdict is Verdict.DIVERGED and not ill.by_loss:
            return "the loss is as it should be"
        if self._lr.trust.cleared:
            return f"it has gone well for {self._lr.trust.after} iterations"
        return ""

    def _came_from_outside(
        self, runtime: Runtime, verdict: Verdict, nonfinite: list[str]
    ) -> bool:
        """Whether something else than training made the state non-finite.

        Where every step is guarded, training does not make NaN; unless it is
        back. It can make infinities, all losses and gradients being finite: of
        BatchNorm's statistics, Adam's squares, or a weight, which finite numbers
        overflow to; NaN made from these comes with them.
        """
        guarded = runtime.tap.gate is not None and not runtime.blindness.steps_unseen
        state = verdict is Verdict.STATE_NONFINITE
        if not (guarded and state) or self._store.cooling(self._runner.iter):
            return False
        return not any_rank(overflowed(self._runner, nonfinite))

    def _last_resort(self, runtime: Runtime, verdict: Verdict) -> bool:
        resorts = runtime.last_resorts if self._attempts.may_have_extra else []
        number = self._attempts.number + 1
        return any(resort(verdict, number) for resort in resorts)

    def _give_up(
        self, runtime: Runtime, verdict: Verdict, where: str, limit: str
    ) -> None:
        self._store.finish(diverged=True)
        # The other ranks wait here: if one of them ended, so would the one that writes.
        named = [self._store.pointer.named if dist.is_main_process() else None]
        dist.broadcast_object_list(named)
        checkpoint = named[0] or "missing, for none could be written"
        now, raised = self._runner.iter, runtime.errors.last
        before = [iteration for iteration, *_ in self._attempts.done]
        runtime.emit(
            "abort",
            now,
            verdict,
            rollbacks=self._attempts.number,
            lr_factor=self._lr.total,
            limit=limit,
            checkpoint=checkpoint,
            **(dict(error=raised.text) if raised and verdict is Verdict.RAISED else {}),
        )
        raise TrainingDivergedError(
            messages.diverged(
                now=now,
                verdict=verdict.in_words,
                where=where,
                rollbacks=self._attempts.number,
                attempts=self._attempts.summary(),
                lr_factor=self._lr.total,
                limit=limit,
                checkpoint=checkpoint,
                at_once=verdict in (Verdict.FORWARD_NONFINITE, Verdict.RAISED)
                and returned_at_once(
                    before, now, self._lr.total, self._lr.warmup_iters
                ),
            )
        )


def lower_loss_scale(runner: Runner, factor: float, floor: float) -> float | None:
    """Multiply every loss scale, static ones too, but not below ``floor``.

    Returns:
        The smallest scale now, or ``None`` if there is no loss scale.
    """
    scales = []
    for _, wrapper in iter_wrappers(runner.optim_wrapper):
        if (scaler := active_scaler(wrapper)) is not None:
            state = scaler.state_dict()
            # A scale that was configured below the floor is not raised to it.
            lowest = min(floor, max(state["scale"], 1.0))
            scale = max(lowest, state["scale"] * factor)
            if scale != state["scale"]:
                scaler.load_state_dict(dict(state, scale=scale, _growth_tracker=0))
            scales.append(scale)
    pin_static_scale(runner)
    return min(scales, default=None)


def pin_static_scale(runner: Runner) -> None:
    """Let a static loss scale stay what the scaler now holds.

    MMEngine writes the configured number back at the end of every step.
    """
    for _, wrapper in iter_wrappers(runner.optim_wrapper):
        scaler = active_scaler(wrapper)
        if scaler and private.static_scale(wrapper) is not None:
            private.set_static_scale(wrapper, scaler.get_scale())
