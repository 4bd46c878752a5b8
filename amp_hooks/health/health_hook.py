"""Is the run healthy? Not whether its numbers are finite: whether it learns."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner

from ..engine.checks import check_bool
from ..engine.condition import LR_ROSE, Condition, State
from ..engine.hook import AmpHook
from ..engine.recorder import IterationRecord
from ..engine.run import gradients_are_shared, iter_wrappers, of_all_ranks
from ..engine.runtime import Runtime
from ..engine.verdict import Verdict
from ..registry import HOOKS
from .blame import excuse, undecided
from .highest_rate import HighestRate, largest_lr
from .looks import Looks
from .main_metric import main_metric, save_best_of
from .onset import Lifts
from .run_health import RunHealth
from .telling import Told, show
from .waiting import Waiting

# A learning rate that is too high needs some iterations to ruin a model: the loss is
# x1.4, x3, x212 (mmdetection#4299). What is out by so much at once was one batch.
_AT_ONCE = 100.0


@HOOKS.register_module()
class HealthHook(AmpHook):
    """Judges the run by its loss, its gradients and its evaluations.

    A ruined run may well be finite: the learning rate jumps, the logits hit a bound,
    and the loss stands at 100 with a gradient of zero for ever (mmdetection#4299,
    #3446, #4595). This hook learns the level and the spread of the loss from the
    healthy past, in the logarithm and robustly, and adds up how far it is out of that
    range (CUSUM, Page 1954): x1000 is ill after a few iterations, x2 after many; one
    batch, however bad, never is. The first losses of a run are a level as well, which a
    hot start cannot spoil; at iterations 40 to 70, 20 to 160 after a learning rate has
    jumped and 3 to 12 after a step with an enormous gradient RollbackHook is asked what
    the batch costs with the weights of before.
    Judged are also gradients that have died while the loss is high, a clamp that bounds
    most logits for long, and the evaluation's main metric.

    - *watched*: the loss has left its range. Until it is back no snapshot is taken or
      proven, and no older checkpoint is removed.
    - *ill*: it stays out. The verdict is DIVERGED, and RollbackHook goes back to before
      the onset, to a lower learning rate. Without RollbackHook it is only told.

    Nothing is learned from a run while it is watched or ill, so that illness does not
    become normal. Decaying and restarting learning rates, loss terms that come and go,
    the end of mosaic and a few hard batches are no illness. RollbackHook is asked for a
    second opinion first: if the weights of its snapshot cost as much on the last batch
    as those of now, it is the data, and nothing is taken back. Nor is it where several
    optimizers compete, as in a GAN, unless the loss is more than x12. Weights that know
    too little, as those of a start, excuse nothing; there, and where those of now are
    less than twice as bad, time decides: the run goes back once it learns nothing.

    The numbers are on the host anyway: nothing is copied, launched or awaited for this.
    With several processes each judges its own loss. One that finds the run ill makes
    its next loss NaN, as StepGuardHook does at any fault, so that all of them refuse
    that step and go back together; without StepGuardHook it is only told there.

    Args:
        divergence (bool): Judge the loss, its terms, gradients and clamps. Defaults to
            True.
        metric (bool): Judge the evaluation's metric: that of CheckpointHook's
            ``save_best``, else the first that is a mAP, AP, mIoU, PQ or accuracy.
            Defaults to True.

    Attributes:
        health: What it knows. The thresholds, with the reason for each, are in
            ``amp_hooks.health.thresholds``.

    Examples:
        >>> custom_hooks = [
        ...     dict(type='amp_hooks.HealthHook'),
        ...     dict(type='amp_hooks.StepGuardHook'),
        ...     dict(type='amp_hooks.RollbackHook')]
    """

    priority = 38  # after the guard and the clamp; RollbackHook acts on its verdict

    def __init__(self, divergence: bool = True, metric: bool = True) -> None:
        self.divergence = check_bool("HealthHook", "divergence", divergence)
        self.metric = check_bool("HealthHook", "metric", metric)
        self.health = RunHealth()
        self._rates = HighestRate()
        self._lifts = Lifts()
        self._told = Told()
        self._waiting = Waiting()
        self._iter = 0
        self._looks = Looks()

    def attach(self, runner: Runner, runtime: Runtime) -> None:
        """Hear of rollbacks."""
        on_event = partial(self._on_event, runtime)
        runtime.listeners.append(self.guarded(on_event))
        runtime.condition = self._condition()
        self._shared = gradients_are_shared(runner)
        self.undo.callback(self._let_go, runtime)

    def _let_go(self, runtime: Runtime) -> None:
        """After a failure nobody knows any more how the run is."""
        if self in runtime.failures.off:
            runtime.condition = Condition()

    def after_record(
        self, runner: Runner, runtime: Runtime, record: IterationRecord
    ) -> None:
        """Take in the iteration; say what follows from it."""
        # Of several ranks one has asked for this, and all of them are here.
        together = record.verdict is Verdict.DIVERGED
        lr = largest_lr(runner) if self.divergence else None
        if not record.verdict.is_bad:
            if self.divergence:
                self._add(record, lr)
            runtime.condition = self._condition()
            self._told.tell(runtime, record)
        over = self.health.over_start
        ill = runtime.condition.state == State.ILL and not record.verdict.is_bad
        ill = ill and not self._waits(runtime, record.iter, over)
        if (found := self._look(runner, runtime, record, lr)) is not None:
            known = runtime.condition
            costs: Any = dict(cost=known.cost, level=known.level, start=known.start)
            sudden = found.sudden and self._rates.had_gone_well(found.since or 0)
            runtime.condition = replace(found, sudden=sudden, **costs)
            self._tell_diverged(runtime, record)
            record.verdict = Verdict.DIVERGED
        elif ill and not together and self._looks.start.clears(record.iter, over):
            self._excuse(runtime, record, self._looks.start.words)
        elif together or (ill and not runtime.forward.together):
            self._diverged(runner, runtime, record)
        elif ill and self._acts(runtime):
            runtime.forward.diverged = runtime.condition
        elif ill:
            self._tell_diverged(runtime, record)
        record.put("health", runtime.condition.state)
        show(self.health, record)

    def _look(
        self,
        runner: Runner,
        runtime: Runtime,
        record: IterationRecord,
        lr: float | None,
    ) -> Condition | None:
        """By the weights of before, at some iterations; on all ranks alike."""
        known = record.stepped and self._shared
        norm, cost = record.get("gradnorm") if known else None, runtime.condition.cost
        due = self._looks.due(record.iter, lr, norm, cost)
        ask = runtime.second_opinion
        if ask is None or not (self.divergence and self._acts(runtime)):
            return None
        if due and len(list(iter_wrappers(runner.optim_wrapper))) > 1:
            due = []
        found = self._looks.take(ask, record.iter, due)
        return None if record.verdict.is_bad else found

    def _waits(self, runtime: Runtime, iteration: int, over: float | None) -> bool:
        """Whether it is too early to say that it is ill."""
        if self._waiting.is_open(iteration, runtime.condition):
            return True
        looks = runtime.second_opinion is not None and self._acts(runtime)
        return looks and self._looks.start.waits(iteration, over)

    def after_val_epoch(
        self, runner: Runner, metrics: dict[str, float] | None = None
    ) -> None:
        """Look at the metric that the run is judged by."""
        if not self.metric or not metrics:
            return
        hooks = [hook for hook in runner.hooks if isinstance(hook, CheckpointHook)]
        best = [each for hook in hooks for each in save_best_of(hook)]
        found = main_metric(metrics, best)
        if found is not None:
            name, larger = found
            self.health.metric(runner.iter, name, float(metrics[name]), larger)

    def state(self) -> dict[str, Any]:
        """What has been learned of the run."""
        of_run: dict[str, Any] = dict(health=self.health, rates=self._rates)
        of_run.update(told=self._told, waiting=self._waiting)
        known = {name: part.state() for name, part in of_run.items()}
        return dict(known, **self._looks.state())

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on judging by it."""
        health, rates = RunHealth(), HighestRate()
        health.load_state(state["health"])
        rates.load_state(state["rates"])
        self.health, self._rates = health, rates
        self._told.load_state(state["told"])
        # Of an earlier version: what it knew of the learning rate.
        rise = state.get("rise", dict(state["health"]["symptoms"]))
        self._looks.load_state(dict(state, rise=rise))
        if "waiting" in state:
            self._waiting.load_state(state["waiting"])

    def _add(self, record: IterationRecord, lr: float | None) -> None:
        terms = dict(record.values.get("loss", {}))
        logged = terms.pop("loss", None)
        propagated = record.all("backward_loss")
        loss = sum(propagated) if propagated else logged
        self._lifts.add(record.iter, loss, self.health.level)
        self._waiting.add(loss)
        self._iter = record.iter
        well = self.health.condition == State.HEALTHY
        self._rates.add(record.iter, lr, well)
        self.health.add(
            record.iter,
            loss,
            terms,
            lr=lr,
            grad_norm=record.get("gradnorm"),
            clamped=max(record.all("clamped"), default=None),
        )

    def _condition(self) -> Condition:
        health = self.health
        return Condition(
            health.condition,
            health.since,
            health.why,
            health.ratio,
            rise := self._rates.rise(health.since or self._iter),
            sudden=rise < LR_ROSE and self._lifts.at(health.since) >= _AT_ONCE,
            convalescent=self._told.convalescent,
            by_loss=health.by_loss,
            cost=health.cost,
            level=health.level,
            start=health.start,
            learns=self._waiting.has_learned(health.since),
            warms_up=self._rates.rise((health.since or 0) // 2) >= LR_ROSE,
            in_vain=health.in_vain,
        )

    def _diverged(
        self, runner: Runner, runtime: Runtime, record: IterationRecord
    ) -> None:
        """Act on it, unless it is not the weights; on all ranks alike."""
        ask, mine = runtime.second_opinion, runtime.condition
        ill = of_all_ranks(replace(mine, median=self._waiting.median))
        costs = ask(ill) if ask is not None else None
        optimizers = len(list(iter_wrappers(runner.optim_wrapper)))
        why = excuse(ill, costs, optimizers)
        if why is not None:
            self._excuse(runtime, record, why)
        elif undecided(ill, costs) and self._waiting.learns(ill):
            self._waiting.ask_again(record.iter, ill)
            if record.verdict is Verdict.DIVERGED:
                record.verdict = Verdict.HEALTHY
        else:
            self._tell_diverged(runtime, record)
            record.verdict = Verdict.DIVERGED

    def _excuse(self, runtime: Runtime, record: IterationRecord, why: str) -> None:
        found = runtime.condition.why
        self._waiting.end()
        self.health.excuse()
        runtime.condition = self._condition()
        if record.verdict is Verdict.DIVERGED:
            record.verdict = Verdict.HEALTHY
        self._told.excused(runtime, record, found, why)

    def _tell_diverged(self, runtime: Runtime, record: IterationRecord) -> None:
        missing = "RollbackHook" if not runtime.goes_back else "StepGuardHook"
        self._told.diverged(runtime, record, "" if self._acts(runtime) else missing)

    def _acts(self, runtime: Runtime) -> bool:
        # Of several ranks one alone cannot act; the guard lets the others know.
        carried = runtime.tap.gate is not None or not runtime.forward.together
        return runtime.goes_back and carried

    def _on_event(self, runtime: Runtime, line: dict[str, Any]) -> None:
        if line["event"] == "rollback":
            self._rates.went_back(runtime.condition.since)
            self.health.rolled_back(
                line["iter"],
                line["target_iter"],
                line.get("target_level"),
                line["verdict"] == Verdict.DIVERGED.value,
            )
            self._told.set(State.WATCHED, convalescent=True)
            self._looks.went_back(line["iter"])
            self._waiting.end()
            runtime.forward.diverged = None
            runtime.condition = self._condition()
        elif line["event"] == "recover" and line.get("why"):
            self.health.changed()
            self._told.set(State.HEALTHY)
            runtime.condition = self._condition()
