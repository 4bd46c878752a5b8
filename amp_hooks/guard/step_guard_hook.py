"""A bad step leaves no trace."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import mmengine.dist as dist
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from ..engine.checks import (
    check_bool,
    check_choice,
    check_int,
    check_number,
    check_regexes,
)
from ..engine.hook import AmpHook
from ..engine.live_buffers import LiveBuffers
from ..engine.messages import WarnOnce, warn
from ..engine.named import named_parameters
from ..engine.recorder import IterationRecord
from ..engine.run import accumulating, bare_model, iter_wrappers
from ..engine.runtime import Runtime
from ..engine.supported import refuse_unsupported
from ..engine.verdict import Verdict
from ..engine.words import first_names
from ..errors import NoStepError, SetupError
from ..registry import HOOKS
from .accumulation import AccumulationStart
from .buffer_watch import BufferWatch
from .first_steps import FirstSteps
from .head_inputs import HeadInputs
from .nan_steps import NAN_ERRORS, NanSteps, Vote
from .scale_policy import ScalePolicy
from .step_gate import StepGate


@HOOKS.register_module()
class StepGuardHook(AmpHook):
    """Refuses an optimizer step whose gradients are not finite, and undoes the rest.

    After such an iteration parameters, buffers (BatchNorm statistics first of all),
    optimizer state and EMA are bit for bit what they were before it; under gradient
    accumulation, before the first iteration that feeds the step; all are dropped.
    It works in any precision. With a GradScaler nothing waits for the device that did
    not before; without one, the optimizer step waits once, but where the optimizer is
    told on the device, as fused ones can be (``fused=True``).

    *Gradients decide.* A loss, or a term of one, that is NaN while all gradients are
    finite does no harm and is stepped on: a mean over no samples, say. But a forward
    pass with logits, predictions handed to a loss, or BatchNorm statistics that are not
    finite and were before makes all gradients NaN, so that with several processes
    every rank refuses the step; also where hooks of others clean gradients
    (``nan_to_num``). What was not finite, or not there, at the first healthy step is so
    by design and is not watched.

    *NaN is kept out of the losses.* In what a head hands to losses that could raise or
    assert, NaN and infinities are replaced by 0 and remembered on the device, so that
    no assigner raises, no CUDA kernel asserts, and no rank waits for another.

    EMAHook and MeanTeacherHook are left out after a refused step. Not undone: what a
    model or hook keeps in Python attributes, and, under gradient accumulation, what
    MeanTeacherHook averaged earlier in the same accumulation.

    *Loss scale.* It is never lowered below ``scale_floor``, nor by a non-finite forward
    pass, which no scale can cure. Of an overflow, ``hysteresis`` decides; a static
    scale is lowered like a dynamic one (by GradScaler's ``backoff_factor``), and stays.

    *No gradient.* When no parameter of an optimizer has one, GradScaler stops with "No
    inf checks were recorded for this optimizer" (fast-reid#700, #704, #735). Here the
    step is skipped, with a warning that says why there is none.

    *NaN that arrives as an exception* all the same (mmdetection#8155): the iteration is
    left out, its verdict is RAISED, and training goes on. With several processes the
    other ranks wait for this one's gradients, so it is an error there, unless
    ``vote=True``. All other exceptions pass through.

    Args:
        scale_floor (float): The loss scale is not lowered below it; overflow there has
            verdict GRAD_NONFINITE. Defaults to 1.0.
        hysteresis (int): Overflows that it takes to lower the loss scale, as in
            Megatron-LM; 1 lowers it at each, as GradScaler does. Defaults to 1.
        on_missing_grads (str): 'skip' the step, or 'raise' a RuntimeError. With several
            processes a detached loss is an error in any case. Defaults to 'skip'.
        nan_errors (Sequence[str], optional): Regular expressions by which an exception
            is known to come from NaN, in addition to NaN in the variables of the
            functions that it came through, FloatingPointError, messages with nan or
            inf, and those of scipy's linear_sum_assignment, sklearn, DETR's boxes and
            mmdet's heads. Defaults to None.
        max_nan_errors (int): Iterations that may end that way without an optimizer step
            or a rollback between them; one more raises TrainingDivergedError. 0 lets
            every exception pass. Defaults to 10.
        vote (bool): With several processes, let all ranks agree before each backward
            pass whether one of them raised: a small gloo collective in every iteration.
            It helps only if the loss has no collectives of its own after the point that
            raised; otherwise the vote times out with an error. Defaults to False.
        vote_timeout (int): Seconds to wait for the other ranks. Defaults to 600.

    Raises:
        TrainingDivergedError: More than ``max_nan_errors`` such exceptions in a row.
        RuntimeError: No gradient, with ``on_missing_grads='raise'``; or an exception
            because of NaN on one of several ranks without ``vote``.

    Examples:
        >>> custom_hooks = [dict(type='amp_hooks.StepGuardHook')]
        >>> custom_hooks = [
        ...     dict(type='amp_hooks.StepGuardHook', scale_floor=128.0, hysteresis=2)]
    """

    priority = 32  # after the monitors, before all that acts on a bad iteration

    def __init__(
        self,
        scale_floor: float = 1.0,
        hysteresis: int = 1,
        on_missing_grads: str = "skip",
        nan_errors: Sequence[str] | None = None,
        max_nan_errors: int = 10,
        vote: bool = False,
        vote_timeout: int = 600,
    ) -> None:
        owner = "StepGuardHook"
        self.scale_floor = check_number(owner, "scale_floor", scale_floor, above=0)
        self.hysteresis = check_int(owner, "hysteresis", hysteresis, 1)
        self.on_missing_grads = check_choice(
            owner, "on_missing_grads", on_missing_grads, ("skip", "raise")
        )
        self.nan_errors = check_regexes(owner, "nan_errors", nan_errors)
        self.max_nan_errors = check_int(owner, "max_nan_errors", max_nan_errors, 0)
        self.vote = check_bool(owner, "vote", vote)
        self.vote_timeout = check_int(owner, "vote_timeout", vote_timeout, 1)
        self.vetoes = 0
        self._streak = 0
        self._policy = ScalePolicy(self.scale_floor, self.hysteresis)
        self._warn_once = WarnOnce()

    def attach(self, runner: Runner, runtime: Runtime) -> None:
        """Stand before every optimizer step."""
        refuse_unsupported(self, runner)
        if self.vote and getattr(runner.model, "broadcast_buffers", False):
            raise SetupError(
                "StepGuardHook: vote=True does not work with broadcast_buffers=True: "
                "after an exception on one rank the ranks would wait for different "
                "things. Set broadcast_buffers=False in model_wrapper_cfg."
            )
        runtime.scale_floor = self.scale_floor
        model = bare_model(runner)
        names = {id(p): name for name, p in named_parameters(model)}
        runtime.by_design.begin(model)
        buffers = runtime.watch_forward(BufferWatch)
        heads = runtime.watch_forward(HeadInputs)
        self.undo.callback(buffers.close)
        self.undo.callback(heads.close)
        live = LiveBuffers(model)
        buffers.watch(live, runtime.by_design)
        heads.watch(model, runtime.forward.trusts)
        several = dist.get_world_size() > 1
        alone = several and not is_model_wrapper(runner.model)
        runtime.forward.together |= alone
        self._gate = runtime.tap.gate = StepGate(
            names,
            runtime.forward.take_flags,
            self._on_missing,
            owner=self,
            guarded=self.guarded,
            votes=alone,
            sharded=runtime.tap.sharded,
        )
        self.undo.callback(self._gate.cleaned.close)
        self.undo.callback(setattr, runtime.tap, "gate", None)
        self._first_steps = FirstSteps()
        before_step = self.guarded(self._first_steps.before_step)
        runtime.tap.on_step.append(before_step)
        self._start = AccumulationStart(runner, live)
        self._start.save(runner)
        for name, wrapper in iter_wrappers(runner.optim_wrapper):
            self._policy.begin(name, wrapper)
        vote = Vote(self.vote_timeout) if self.vote and several else None
        self._nan_steps = NanSteps(
            runner,
            runtime,
            (*NAN_ERRORS, *self.nan_errors),
            self.max_nan_errors,
            vote,
            self.guarded,
        )
        self._nan_steps.attach()
        runtime.averaging.attach(runner, self)
        runtime.listeners.append(self.guarded(partial(self._on_event, runner)))
        for hook in runner.hooks:
            if "CheckInvalidLossHook" in {cls.__name__ for cls in type(hook).__mro__}:
                warn(
                    "CheckInvalidLossHook ends the run at a loss that is not finite, "
                    "before StepGuardHook can refuse the step and go on: take it out "
                    "of custom_hooks."
                )

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        """Copy, at the beginning of an accumulation, what may be undone."""
        self._first_steps.begin()
        if not accumulating(runner.optim_wrapper):
            self._start.save(runner)

    def after_record(
        self, runner: Runner, runtime: Runtime, record: IterationRecord
    ) -> None:
        """Undo what a bad iteration did, and see to the loss scale."""
        wrappers = list(iter_wrappers(runner.optim_wrapper))
        scales = [
            self._policy.after_step(name, wrapper, record) for name, wrapper in wrappers
        ]
        refused = any(record.all("found_inf")) or record.verdict is Verdict.RAISED
        undone = refused or record.verdict.is_bad or self._gate.skipped
        for name, found in record.values.get("found_inf", {}).items():
            if found:
                self._first_steps.refused(name, dict(wrappers)[name])
        if undone and not record.stepped:
            self._start.restore(runner)
            runtime.averaging.undone = record.iter
        self._gate.skipped.clear()
        if refused:
            self.vetoes += 1
            known = [scale for scale in scales if scale is not None]
            runtime.emit(
                "veto", record.iter, record.verdict, scale=min(known, default=None)
            )
        if refused and (cleaned := self._gate.cleaned.names):
            self._warn_once(
                f"hooks on the gradients of {first_names(cleaned)} may replace NaN by "
                "numbers (nan_to_num), and would have let this iteration pass. What "
                "the forward pass shows decides; this is said once."
            )
        healthy = record.by_loss_alone and record.verdict is Verdict.HEALTHY
        if record.stepped or healthy:
            self._streak = 0
            self._nan_steps.start_anew()
        elif record.verdict.is_bad:
            self._streak += 1
        if self._streak == 1 and record.verdict.is_bad and not record.stepped:
            step = "a step that could not be seen"
            step = step if record.steps_unseen else "no optimizer step"
            warn(
                f"iteration {record.iter} was undone, for "
                f"{record.verdict.in_words}: {step}, "
                "and buffers and EMA are as before it. Training goes on with the next "
                "batch; stability.jsonl tells more."
            )
        record.put("vetoes_total", self.vetoes)

    def state(self) -> dict[str, Any]:
        """Counts, hysteresis, and static scales that were lowered."""
        return dict(vetoes=self.vetoes, scale=self._policy.state())

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on counting."""
        self.vetoes = int(state["vetoes"])
        self._policy.load_state(state["scale"])

    def _on_missing(self, message: str) -> None:
        if self.on_missing_grads == "raise":
            raise NoStepError(f"StepGuardHook: {message}.")
        self._warn_once(f"{message}. Such steps are skipped; this is said once.")

    def _on_event(self, runner: Runner, line: dict[str, Any]) -> None:
        if line["event"] == "rollback":
            # What was saved, and the accumulation that had begun, are of another state.
            self._start.save(runner)
            self._policy.forget()
            self._nan_steps.start_anew()
            self._gate.forget()
