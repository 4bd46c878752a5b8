"""What the hooks of one runner share."""

from __future__ import annotations

import os.path as osp
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, TypeVar, cast

import mmengine.dist as dist
import torch
from mmengine.model import is_model_wrapper
from mmengine.optim import BaseOptimWrapper
from mmengine.runner import Runner

from . import private
from .averaging import Averaging
from .blindness import Blindness
from .by_design import ByDesign
from .condition import Condition, Costs
from .describe import describe_run, utc_now
from .error_tap import ErrorTap
from .failures import Failures
from .files import Save
from .forward_judge import ForwardJudge
from .harmless import HarmlessLosses
from .ledger import Ledger
from .messages import warn
from .no_trace import NoTrace
from .nonfinite_forward import ForwardWatch, NonfiniteForward
from .of_others import ByIdentity
from .outputs import close_with_losses
from .recorder import FlightRecorder, IterationRecord
from .run import accumulating, bare_model
from .sharded import norms_of_all_ranks
from .step_tap import StepTap
from .verdict import Verdict, judge

W = TypeVar("W", bound=ForwardWatch)

_RUNTIMES: ByIdentity[Runtime] = ByIdentity()


class Runtime:
    """One per runner: the flight recorder, the taps that feed it, and the ledger.

    Attributes:
        failures: Bears what our own code raises.
        recorder: Device scalars of the present iteration, records of past ones.
        tap: Sees the gradients at each optimizer step.
        forward: What the forward passes that feed a step say about it.
        errors: Sees the exceptions that leave ``train_step``.
        averaging: Leaves EMA and the like out after an iteration that was undone.
        blindness: What cannot be seen of this run.
        fp32_fits: Not known to need more memory than a device has, on any rank.
        scale_floor: A loss scale at or below it cannot usefully be lowered any more.
            Below 1.0 it makes gradients smaller than they are, which cures nothing.
        clamp_limits: Largest |value| that each HeadClampHook lets through.
        by_design: What may be NaN or infinite in the model, because it always was.
        condition: How the run is, beyond this iteration.
        goes_back: RollbackHook is there to act on it.
        second_opinion: ``second_opinion(condition)``: what the last batch costs with
            the weights of now and of before, where it can be told. A collective.
        harmless: Losses that were not finite over finite gradients.
        completers: Called with each record before it is judged, to add to it.
        observers: Called with each record that was judged; what they return goes
            into the ledger line of an iteration that is not healthy.
        listeners: Called with each line of the ledger, as a dict.
        early_lines: Lines from before the first iteration, for hooks that attach late.
        last_resorts: Called as ``resort(verdict, rollbacks)`` when the rollbacks are
            used up; whether it has changed something, so that one more is worth while.
        saver: ``saver(path)`` gives the function that writes a checkpoint there.
        attached: How many hooks are, at present.
        begun: There is a start line, and no abort line since.
        replayed: Contexts in which a forward pass of this iteration is run again as it
            was: faults that were injected into it.
    """

    def __init__(self, runner: Runner) -> None:
        self.failures = Failures()
        self.recorder = FlightRecorder()
        self.tap = StepTap(self.recorder, self.failures)
        self.forward = ForwardJudge(self.recorder, self.failures)
        self.tap.on_backward.append(partial(self.forward.measure, backward=True))
        self.errors = ErrorTap(self.tap, self.failures)
        self.averaging = Averaging()
        self.blindness = Blindness()
        self.by_design = ByDesign()
        self.harmless = HarmlessLosses()
        self.condition = Condition()
        self.goes_back = False
        self.second_opinion: Callable[..., Costs | None] | None = None
        self.fp32_fits = True
        self.scale_floor = 1.0
        self.clamp_limits: list[float] = []
        self.completers: list[Callable[[IterationRecord], None]] = []
        self.observers: list[Callable[[IterationRecord], dict[str, Any]]] = []
        self.listeners: list[Callable[[dict[str, Any]], None]] = []
        self.early_lines: list[dict[str, Any]] = []
        self.last_resorts: list[Callable[[Verdict, int], bool]] = []
        self.saver: Callable[[str], Save] = lambda path: torch.save
        self.replayed: list[Callable[[], AbstractContextManager[Any]]] = []
        self._ledger = Ledger(osp.join(runner.log_dir, "stability.jsonl"))
        self._no_trace = NoTrace()
        self._record: IterationRecord | None = None
        self.attached, self.begun = 0, False

    @classmethod
    def of(cls, runner: Runner) -> Runtime:
        """The runner's one runtime."""
        if runner not in _RUNTIMES:
            _RUNTIMES[runner] = cls(runner)
        return _RUNTIMES[runner]

    def watch_forward(self, kind: Callable[[FlightRecorder], W]) -> W:
        """The runner's one watch of that kind, made for the first hook that asks.

        Args:
            kind: What makes it of the recorder: a class such as LogitWatch.
        """
        watch = next((w for w in self.forward.watches if type(w) is kind), None)
        if watch is None:
            watch = kind(self.recorder)
            self.failures.register(watch, watch.close)
            watch.guarded = partial(self.failures.guarded, watch)
            self.forward.watches.append(watch)
        return cast(W, watch)

    def record(self, runner: Runner, outputs: Any) -> IterationRecord:
        """The record of the iteration that has just run.

        The first hook that asks causes the one device-to-host copy; the others get
        the same object.
        """
        if (known := self._record) and known.iter == private.iteration(runner):
            return known
        try:
            return self._new_record(runner, outputs)
        except Exception as e:
            self.failures.bear_or_raise(self, "record", e)
            raise  # the one who asks is off as well

    def _new_record(self, runner: Runner, outputs: Any) -> IterationRecord:
        self.forward.measure()  # what no backward pass was seen of
        messages = [watch.end_iteration() for watch in self.forward.watches]
        losses = {} if self.errors.raised else outputs  # else there are none
        record = close_with_losses(self.recorder, private.iteration(runner), losses)
        for name, loss in record.values.get("backward_loss", {}).items():
            record.put("backward_loss", loss * self.tap.divisors[name], name)
        self.tap.complete(record)
        self.forward.complete(record)
        for complete in self.completers:
            complete(record)
        record.vectors.clear()
        self._record = record
        record.step_due = not accumulating(runner.optim_wrapper)
        tap, past = self.tap, self.tap.past_wrapper
        past = past and tap.knows(runner.optim_wrapper)
        unseen = self.blindness.add(record, tap.skipped, past, tap.within_step)
        for message in filter(None, (*messages, *unseen)):
            warn(message)
        self.averaging.look_again(runner, self.blindness.iterations)
        fields: dict[str, Any] = {}
        nonfinite = self._judge(record)
        for observe in self.observers:
            fields.update(observe(record))
        self._tell_harmless(record)
        if record.verdict is Verdict.HEALTHY:
            self.forward.learn(record)
            if record.proves_something and not self.by_design.settled:
                self.by_design.settle(bare_model(runner))
        if (raised := self.errors.raised) is not None:
            fields["error"] = raised.text
            record.put("gave_up", float(raised.ours))
            self.errors.last, self.errors.raised = raised, None
            self.forget_accumulation()
        if record.verdict is not Verdict.HEALTHY:
            fields = {**nonfinite.fields, **fields}
            if scales := record.all("scale"):
                fields["scale"] = min(scales)
            if dist.get_world_size() > 1:
                fields["ranks"] = record.ranks
            self.emit("overflow", record.iter, record.verdict, **fields)
        if record.all("found_inf") or self.tap.skipped:
            self.forget_accumulation()
        self.tap.skipped = False
        if isinstance(runner.optim_wrapper, BaseOptimWrapper):
            self.tap.attach(runner.optim_wrapper)  # it may have been replaced
        return record

    def _judge(self, record: IterationRecord) -> NonfiniteForward:
        """Set verdict and ranks of the record; returns what the verdict rests on."""
        raised = self.errors.raised
        nonfinite = self.forward.judge(record, None if raised is None else raised.ranks)
        scales = record.values.get("scale", {})
        found_inf = record.values.get("found_inf", {})
        names = [name for name, found in found_inf.items() if found]
        bad = [scales.get(name) for name in names]
        record.verdict = judge(
            forward_finite=not nonfinite,
            grads_finite=not any(found_inf.values()),
            has_scaler=None not in bad,
            scale_at_floor=any(s is not None and not s > self.scale_floor for s in bad)
            or any(self.tap.scale_is_fixed(name) for name in names),
            raised=raised is not None,
        )
        if nonfinite.diverged is not None:
            record.verdict, self.condition = Verdict.DIVERGED, nonfinite.diverged
            self.forward.diverged = None
        return nonfinite

    def _tell_harmless(self, record: IterationRecord) -> None:
        losses, propagated = self.forward.harmless, self.forward.harmless_propagated
        if losses and (why := self.harmless.add(losses, propagated, record.iter)):
            self.emit("nan_term", record.iter, Verdict.HEALTHY, losses=losses, why=why)
        record.put("nan_terms_total", self.harmless.total)

    def emit(self, event: str, iteration: int, verdict: Verdict, **fields: Any) -> None:
        """Write a ledger line (rank 0) and tell the listeners.

        A line that cannot be written, for the disk or for itself, costs the line.
        """
        if dist.is_main_process():
            try:
                self._ledger.write(iteration, event, verdict.value, **fields)
            except Exception as e:
                warn(f"could not write {self._ledger.path}: {e}. Training goes on.")
        line = dict(iter=iteration, event=event, verdict=verdict.value, **fields)
        self.begun = (self.begun or event == "start") and event != "abort"
        if self._record is None:
            self.early_lines.append(line)
        for listener in self.listeners:
            listener(line)

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """What the model does meanwhile is no training iteration: note nothing."""
        was, self.recorder.muted = self.recorder.muted, True
        try:
            yield
        finally:
            self.recorder.muted = was

    def forget_accumulation(self) -> None:
        """Drop what is known of gradients that are not applied any more."""
        self.forward.forget()

    @property
    def verdict(self) -> Verdict:
        """On the last iteration."""
        return self._record.verdict if self._record else Verdict.HEALTHY

    def begin(self, runner: Runner, hooks: Mapping[str, Mapping[str, Any]]) -> None:
        """A hook attaches; the first one opens the ledger.

        Args:
            runner: About to train.
            hooks: The hooks of this package, and the arguments given to each.
        """
        self.attached += 1
        if self.attached == 1:
            self._no_trace.attach(runner.model)
            self.failures.on_failure = lambda **about: self.emit(
                "failure", runner.iter, self.verdict, **about
            )
            for part in (self, self.tap, self.errors):
                self.failures.register(part, part.detach, essential=True)
            wrapped = is_model_wrapper(runner.model)
            self.forward.together = wrapped and dist.get_world_size() > 1
            self.tap.sharded = norms_of_all_ranks(runner)
            # All ranks call it: what it asks of a GradScaler costs nothing yet.
            about = describe_run(runner, hooks)
            self.emit("start", runner.iter, Verdict.HEALTHY, **about)

    def end(self, runner: Runner) -> None:
        """A hook detaches; with the last one the ledger ends."""
        self.detach()
        self.attached -= 1
        if self.attached == 0:
            self.emit("end", max(runner.iter - 1, 0), Verdict.HEALTHY, time=utc_now())
            self.failures.clear()

    def abandon(self) -> None:
        """Training has ended with an exception: no hook is going to detach."""
        self.attached = 0
        self.detach()
        self.failures.clear()

    def detach(self) -> None:
        """Give the model and the optimizers back as they were."""
        for part in (self.tap, self.errors, self._no_trace, self.averaging):
            part.detach()
        self.forward.close()
        # They refer to the runner, which could never be freed with them in place.
        seen: tuple[list[Any], ...] = (self.completers, self.observers, self.listeners)
        kept = (self.clamp_limits, self.replayed, self.early_lines, self.last_resorts)
        for things in (*seen, *kept):
            things.clear()
        self.second_opinion = None
