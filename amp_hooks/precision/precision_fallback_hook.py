"""Leave FP16 when it cannot be made to work."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from mmengine.runner import Runner

from ..engine import torch_api
from ..engine.checks import check_bool, check_choice, check_int, check_optional_int
from ..engine.error_tap import Raised
from ..engine.hook import AmpHook
from ..engine.messages import warn
from ..engine.out_of_memory import taken_back
from ..engine.recorder import IterationRecord
from ..engine.run import active_scaler, bare_model, iter_wrappers
from ..engine.runtime import Runtime
from ..engine.verdict import Verdict
from ..engine.words import count
from ..errors import SetupError
from ..registry import HOOKS
from .lower_precision import DTYPES, MixedPrecision, bfloat16_runs_on, no_bfloat16

_BAD = tuple(v.value for v in Verdict if v.is_bad)


@HOOKS.register_module()
class PrecisionFallbackHook(AmpHook):
    """Continues in BF16 or FP32 when rolling back in FP16 does not help.

    After ``after_rollbacks`` rollbacks of :class:`RollbackHook`, or after ``patience``
    iterations in a row with a verdict named in ``on_verdict``, training goes on in
    place in ``to``: same weights, optimizer state and position. BF16 has FP32's range
    at half its memory; where it does not help (one more rollback), or the device or an
    operator lacks it, FP32 follows, unless pre-flight has seen that it does not fit in
    memory. The loss scaler is put away meanwhile and checkpoints hold its state as it
    was, so that they remain good for FP16. After ``iters`` iterations the configured
    precision and the scaler come back; a scale that had collapsed then starts at its
    initial value. All of it happens between two optimizer steps.

    Args:
        after_rollbacks (int): Rollbacks, since the last change of precision, that cause
            the fallback. 0 leaves it to the end: when RollbackHook has none left, and
            for good. That happens in any case. Defaults to 2.
        to (str): 'bfloat16' or 'float32'. Defaults to 'bfloat16'.
        iters (int, optional): Iterations until the configured precision is tried again.
            Defaults to None: never.
        on_verdict (str or Sequence[str], optional): Verdicts that cause it without a
            rollback, 'GRAD_NONFINITE' for one: overflow at the floor of the loss scale.
            Defaults to None.
        patience (int): Iterations in a row with such a verdict. Defaults to 3.
        val_fp32 (bool): Validate and test in FP32 though the config says
            ``ValLoop(fp16=True)``: FP16 validation shows an mAP of 0 on some cards.
            While the fallback is active this is so in any case. Defaults to False.

    Raises:
        ValueError: At the start of training, if neither RollbackHook nor ``on_verdict``
            could ever cause it, or if there is no mixed precision to leave.

    Examples:
        >>> custom_hooks = [
        ...     dict(type='amp_hooks.RollbackHook'),
        ...     dict(type='amp_hooks.PrecisionFallbackHook', iters=5000)]
    """

    priority = 45  # after RollbackHook

    def __init__(
        self,
        after_rollbacks: int = 2,
        to: str = "bfloat16",
        iters: int | None = None,
        on_verdict: str | Sequence[str] | None = None,
        patience: int = 3,
        val_fp32: bool = False,
    ) -> None:
        owner = "PrecisionFallbackHook"
        self.after_rollbacks = check_int(owner, "after_rollbacks", after_rollbacks, 0)
        self.to = check_choice(owner, "to", to, tuple(DTYPES))
        self.iters = check_optional_int(owner, "iters", iters, 1)
        names = [on_verdict] if isinstance(on_verdict, str) else on_verdict or ()
        self.on_verdict = [check_choice(owner, "on_verdict", n, _BAD) for n in names]
        self.patience = check_int(owner, "patience", patience, 1)
        self.val_fp32 = check_bool(owner, "val_fp32", val_fp32)
        self.precision: str | None = None  # that was fallen back to
        self.until: int | None = None
        self._counted = 0  # rollbacks that have been acted on
        self._streak = 0
        self._no_room = self._no_bfloat16 = False  # for FP32; an operator lacks it
        self._initial_scales: dict[str, float] = {}
        self._configured = MixedPrecision()  # until the optimizers are complete

    def before_run(self, runner: Runner) -> None:
        """Remember the initial loss scales, before a checkpoint is read."""
        super().before_run(runner)
        self._initial_scales = {
            name: torch_api.initial_scale(scaler)
            for name, wrapper in iter_wrappers(runner.optim_wrapper)
            if (scaler := active_scaler(wrapper)) is not None
        }

    def attach(self, runner: Runner, runtime: Runtime) -> None:
        """See that there is something to leave, and go on with a fallback resumed."""
        self._check_causes(runner)
        self._configured = MixedPrecision(runner, self._initial_scales)
        if not self._configured.dtypes:
            raise SetupError(
                "PrecisionFallbackHook: optim_wrapper is "
                f"{type(runner.optim_wrapper).__name__}, which computes in FP32, so "
                "there is nothing to fall back to. Use it with AmpOptimWrapper, or "
                "take it out of custom_hooks."
            )
        self.undo.callback(self._give_back)
        if self.precision is not None:
            self._configured.leave(self.precision)
        resort = partial(self._as_last_resort, runner, runtime)
        runtime.last_resorts.append(self.guarded(resort, False))
        runtime.errors.attach(runner)
        on_error = partial(self._on_error, runner, runtime)
        no_room = partial(taken_back, runtime, partial(self._give_up, runner, runtime))
        runtime.errors.handlers += [self.guarded(h, None) for h in (on_error, no_room)]

    def _give_back(self) -> None:
        """The optimizers, as they were configured."""
        self._configured.enter(scale_floor=0.0)
        self._configured = MixedPrecision()

    def after_record(
        self, runner: Runner, runtime: Runtime, record: IterationRecord
    ) -> None:
        """Fall back if need be, come back when it is time."""
        if record.verdict in self.on_verdict and not record.get("gave_up"):
            # Once for all iterations of a step: they share what one of them did.
            self._streak += record.step_due or record.verdict is Verdict.RAISED
        elif record.stepped or record.verdict.is_bad:
            self._streak = 0
        # Not within an accumulation: gradients of two scales do not add up.
        if record.step_due:
            self._decide(runner, runtime, record)
        record.put("fallback_active", float(self.precision is not None))

    def _decide(
        self, runner: Runner, runtime: Runtime, record: IterationRecord
    ) -> None:
        rollbacks = int(record.get("rollbacks_total") or 0)
        # One more is enough to see that BF16 does not help either.
        needed = 1 if self.precision else self.after_rollbacks
        if self.after_rollbacks and rollbacks - self._counted >= needed:
            reason = count(rollbacks - self._counted, "rollback")
            self._fall_back(runner, runtime, record.verdict, reason, rollbacks)
        elif self._streak >= self.patience:
            reason = f"{record.verdict.in_words}, {self._streak} times in a row"
            self._fall_back(runner, runtime, record.verdict, reason, rollbacks)
        elif self.until is not None and runner.iter + 1 >= self.until:
            self._come_back(runner, runtime, rollbacks)

    def before_val(self, runner: Runner) -> None:
        """Keep validation out of FP16."""
        self._loop_in_fp32(runner.val_loop)

    def before_test(self, runner: Runner) -> None:
        """Keep the test out of FP16."""
        self._loop_in_fp32(runner.test_loop)

    def state(self) -> dict[str, Any]:
        """Which precision, until when, what does not fit, the rollbacks acted on."""
        kept = dict(precision=self.precision, until=self.until, counted=self._counted)
        flags = dict(no_room=self._no_room, no_bfloat16=self._no_bfloat16)
        return dict(kept, **{n: True for n, holds in flags.items() if holds})

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on in that precision."""
        self.precision, self.until = state["precision"], state["until"]
        self._no_room = bool(state.get("no_room"))
        self._no_bfloat16 = bool(state.get("no_bfloat16"))
        self._counted = int(state["counted"])

    def _check_causes(self, runner: Runner) -> None:
        by_rollback = any(type(h).__name__ == "RollbackHook" for h in runner.hooks)
        if not by_rollback and not self.on_verdict and not self.val_fp32:
            raise SetupError(
                "PrecisionFallbackHook would never act: there is no RollbackHook in "
                "custom_hooks whose rollbacks it could count. Add "
                "dict(type='amp_hooks.RollbackHook'), or set "
                "on_verdict='GRAD_NONFINITE'."
            )

    def _next(self, runner: Runner) -> str | None:
        """The precision to go to from the present one, if any is left."""
        if self.precision == "float32":
            return None
        device = next(bare_model(runner).parameters()).device
        had = torch.bfloat16 in self._configured.dtypes
        tried = had or self._no_bfloat16 or self.precision == "bfloat16"
        if self.to == "float32" or tried or not bfloat16_runs_on(device):
            fits = Runtime.of(runner).fp32_fits and not self._no_room
            return "float32" if fits else None
        return "bfloat16"

    def _fall_back(
        self,
        runner: Runner,
        runtime: Runtime,
        verdict: Verdict,
        reason: str,
        rollbacks: int,
        for_good: bool = False,
    ) -> None:
        self._counted, self._streak = rollbacks, 0
        precision = self._next(runner)
        if precision is None:
            return
        lasting = for_good or self.iters is None
        until = None if lasting else runner.iter + 1 + (self.iters or 0)
        self.leave(runner, runtime, verdict, precision, reason, until)

    def leave(
        self,
        runner: Runner,
        runtime: Runtime,
        verdict: Verdict,
        precision: str,
        reason: str,
        until: int | None = None,
    ) -> None:
        """Go on in another precision; also for a hook that knows more than this one.

        Args:
            runner: Between two optimizer steps.
            runtime: Of the runner.
            verdict: For the ledger.
            precision: 'bfloat16' or 'float32'.
            reason: In words, after 'because of'.
            until: Iteration of the way back; None is for good.
        """
        self._configured.leave(precision)
        self.precision, self.until = precision, until
        runtime.emit(
            "fallback",
            runner.iter,
            verdict,
            to=precision,
            until=until,
            reason=reason,
        )
        end = "for good" if until is None else f"until iteration {until}"
        warn(
            f"training continues in {precision} {end}, because of {reason} at iteration"
            f" {runner.iter}. It may need more memory and time; rollbacks stay limited."
        )

    def _as_last_resort(
        self, runner: Runner, runtime: Runtime, verdict: Verdict, rollbacks: int
    ) -> bool:
        """The rollbacks are used up. For good, so that the run ends some time."""
        before, why = self.precision, "the rollbacks are used up"
        self._fall_back(runner, runtime, verdict, why, rollbacks, for_good=True)
        return self.precision != before

    def _come_back(
        self, runner: Runner, runtime: Runtime, rollbacks: int, **why: str
    ) -> None:
        self._configured.enter(runtime.scale_floor)
        self.precision = self.until = None
        self._counted, self._streak = rollbacks, 0
        to = str(self._configured.dtypes[0]).rsplit(".", 1)[-1]
        runtime.emit("fallback", runner.iter, Verdict.HEALTHY, to=to, until=None, **why)
        because = "".join(f", as FP32 does not fit ({w})" for w in why.values())
        warn(f"training is back in {to} from iteration {runner.iter + 1} on{because}.")

    def _give_up(self, runner: Runner, runtime: Runtime, error: str) -> bool:
        """FP32 does not fit, and training did without it before."""
        if self.precision != "float32":
            return False
        self._no_room = True
        self._come_back(runner, runtime, self._counted, gave_up=error)
        return True

    def _on_error(
        self, runner: Runner, runtime: Runtime, error: Exception
    ) -> Raised | None:
        """An operator without a bfloat16 version: on every rank alike."""
        text = no_bfloat16(error) if self.precision == "bfloat16" else None
        if text is None:
            return None
        reason = f"an operator without bfloat16 ({text})"
        self._no_bfloat16, last = True, self.until is None
        self._fall_back(runner, runtime, Verdict.RAISED, reason, self._counted, last)
        if self.precision == "bfloat16":  # there is no room for FP32
            why = f"and an operator has no bfloat16: {text}"
            self._come_back(runner, runtime, self._counted, gave_up=why)
        return Raised(text, [], ours=True)

    def _loop_in_fp32(self, loop: Any) -> None:
        if getattr(loop, "fp16", False) and (self.val_fp32 or self.precision):
            loop.fp16 = False
            warn(f"{type(loop).__name__} runs in FP32 from now on, not in FP16.")
