"""See the gradients where they can be seen: around ``optim_wrapper.step``."""

from __future__ import annotations

import math
from contextlib import nullcontext
from functools import partial
from typing import Any, Callable

from mmengine.optim import OptimWrapper
from torch import Tensor

from . import private, torch_api
from .failures import Failures
from .gate import Gate
from .late_step import cleans_gradients, judged_late, late_norms, told_cleaned
from .messages import WarnOnce
from .of_others import is_among
from .patch import wrap
from .recorder import FlightRecorder, IterationRecord
from .run import active_scaler, iter_wrappers, trained_parameters
from .sharded import NormsOfAllRanks, norms_of
from .supported import refuse_closed
from .tensors import nonfinite_flag

# Called with (optimizer name, wrapper, unscaled norms of its parameters).
GradientListener = Callable[[str, OptimWrapper, Tensor], None]


class StepTap:
    """Wraps ``backward`` and ``step`` of each optimizer and notes scale and overflow.

    ``OptimWrapper.update_params`` runs backward, step and zero_grad in one go, so no
    hook event ever sees a gradient. Without a gate none is changed, or waited for.

    Of steps past the wrapper torch tells (``register_step_pre_hook``): the gradients
    are looked at then, and a step is refused by taking them away.

    Args:
        recorder: Gets ``backward_loss`` of each backward pass, and ``scale``,
            ``scale_next``, ``growth_tracker``, ``found_inf`` and the vector
            ``grad_norms`` of each step.
        failures: Bears what goes wrong here; passes and steps are taken all the same.

    Attributes:
        listeners: Called before each step with the norms of its gradients.
        gate: Refuses steps, if there is one.
        sharded: Gives the norms of gradients of which this rank has a part.
        skipped: A step was refused in this iteration without looking at gradients.
        divisors: What the last loss of each optimizer had been divided by, for the
            gradients of several iterations to add up to those of a mean.
        on_backward: Called before each backward pass, that of a gate included.
        on_step: Called with name and wrapper of an optimizer before each step that is
            taken, whoever takes it.
        stepping: The last step has begun and not come to its end, or raised.
        past_wrapper: A step was taken past its wrapper.
        within_step: The gradients of a step were computed within it, by a closure.
    """

    def __init__(self, recorder: FlightRecorder, failures: Failures) -> None:
        self.recorder = recorder
        self._failures = failures
        self.listeners: list[GradientListener] = []
        self.gate: Gate | None = None
        self.sharded: NormsOfAllRanks | None = None
        self.skipped = False
        self.divisors: dict[str, int] = {}
        self.on_backward: list[Callable[[], None]] = []
        self.on_step: list[Callable[[str, OptimWrapper], None]] = []
        self.stepping = False
        self.past_wrapper = self.within_step = False
        self._inside = False  # a wrapper's own step
        self._unscaled: set[str] = set()  # optimizers that stepped without a scaler
        self._late: dict[str, Tensor] = {}  # norms before a step judged within it
        self._early: set[str] = set()  # optimizers whose step cannot be so
        self._warn = WarnOnce()
        self._walked = False  # torch is going through the hooks before a step
        self._handles: list[Any] = []
        self._wrapped: list[tuple[str, OptimWrapper]] = []
        self._undo: list[Callable[[], None]] = []

    def attach(self, optim_wrapper: Any) -> None:
        """Wrap every optimizer that is not wrapped yet.

        Raises:
            UnsupportedError: Of a wrapper's kind the gradients are not ours to see
                (Apex, DeepSpeed and others with an engine of their own).
        """
        for name, wrapper in iter_wrappers(optim_wrapper):
            if self.knows(wrapper):
                continue
            refuse_closed(wrapper)
            self._wrap(name, wrapper)
            self._wrapped.append((name, wrapper))
            self.past_wrapper = False  # of one that has replaced another

    def knows(self, optim_wrapper: Any) -> bool:
        """Whether it is attached to this one: it may just have been replaced."""
        known = [wrapper for _, wrapper in self._wrapped]
        return all(is_among(w, known) for _, w in iter_wrappers(optim_wrapper))

    def scale_is_fixed(self, name: str) -> bool:
        """Whether nobody is going to lower a loss scale, however often it overflows.

        A static one is written back by MMEngine at the end of every step.
        """
        wrapper = dict(self._wrapped).get(name)
        return self.gate is None and private.static_scale(wrapper) is not None

    def drop_accumulation(self, optim_wrapper: Any) -> None:
        """Clear the gradients; given a gate, what was accumulated takes no step."""
        for name, wrapper in iter_wrappers(optim_wrapper):
            wrapper.zero_grad()
            if self.gate and wrapper.inner_count % private.accumulative_counts(wrapper):
                self.gate.dropped.add(name)

    def detach(self) -> None:
        """Give every optimizer its own methods back."""
        while self._undo:
            self._undo.pop()()
        while self._handles and not self._walked:
            self._handles.pop().remove()
        self._wrapped.clear()
        self.listeners.clear()
        self.on_step.clear()
        self.gate = None

    def _wrap(self, name: str, wrapper: OptimWrapper) -> None:
        call, guarded = self._failures.call, self._failures.guarded
        note_loss = guarded(self, partial(self._note_loss, name, wrapper))
        before = guarded(self, partial(self._before, name, wrapper))
        after = guarded(self, partial(self._after, name))

        def backward(original: Any, loss: Tensor, *args: Any, **kwargs: Any) -> Any:
            note_loss(loss)
            if (gate := self.gate) is not None:
                params, go_on = trained_parameters(wrapper), gate.before_backward
                passed: Tensor | None = loss
                passed = call(gate.owner, go_on, name, params, loss, otherwise=passed)
                if passed is None:
                    call(self, private.count_backward, wrapper, otherwise=None)
                    return None
                loss = passed
            return original(loss, *args, **kwargs)

        def step(original: Any, *args: Any, **kwargs: Any) -> Any:
            params, whole = trained_parameters(wrapper), None
            if (gate := self.gate) is not None:
                if not call(gate.owner, gate.opens, name, params, otherwise=True):
                    self.skipped = True
                    call(self, private.count_step, wrapper, otherwise=None)
                    return None
                whole = call(gate.owner, gate.before_step, name, params, otherwise=None)
            state: dict[str, Any] = before(params, whole=whole) or {}
            # Of the gate; GradScaler decides by itself.
            if state.get("bad"):
                call(self, private.count_step, wrapper, otherwise=None)
                return None
            self._inside = True
            try:
                with state.get("around", nullcontext()):
                    result = original(*args, **kwargs)
            finally:
                self._inside = False
            self.stepping = False
            after(state)
            return result

        past_wrapper = guarded(self, partial(self._past_wrapper, name, wrapper))

        def before_any_step(_: Any, args: tuple[Any, ...], kwargs: Any) -> None:
            # torch walks these hooks, so that none may be removed from within.
            self._walked = True
            try:
                look(args, kwargs)
            finally:
                self._walked = False

        def look(args: tuple[Any, ...], kwargs: Any) -> None:
            if not self._wrapped:
                return
            if not self._inside and not self.recorder.muted:
                # A closure computes the gradients anew, within the step.
                closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
                past_wrapper(closure is not None)
            self.stepping = True
            for call in self.on_step:
                call(name, wrapper)

        self._undo += [wrap(wrapper, "backward", backward), wrap(wrapper, "step", step)]
        register = getattr(wrapper.optimizer, "register_step_pre_hook", None)
        if register is not None:
            self._handles.append(register(before_any_step))

    def _past_wrapper(self, name: str, wrapper: OptimWrapper, closure: bool) -> None:
        """The optimizer is about to step, and its wrapper has not been asked."""
        self.past_wrapper, self.within_step = True, closure
        if closure:
            return
        params = trained_parameters(wrapper)
        if self.gate is not None and not self.gate.opens(name, params):
            self.skipped = True
            wrapper.optimizer.zero_grad(set_to_none=True)
            return
        whole = self.gate.before_step(name, params) if self.gate is not None else None
        state = self._before(name, wrapper, params, scaled=False, whole=whole)
        if state.get("bad"):
            wrapper.optimizer.zero_grad(set_to_none=True)

    def _note_loss(self, name: str, wrapper: OptimWrapper, loss: Any) -> None:
        self.stepping = False
        for call in self.on_backward:
            call()
        if isinstance(loss, Tensor) and loss.numel() == 1:
            self.divisors[name] = private.loss_divisor(wrapper)
            self.recorder.note("backward_loss", loss.reshape(()), name, "sum")

    def _before(
        self,
        name: str,
        wrapper: OptimWrapper,
        params: list[Tensor],
        scaled: bool = True,
        whole: Tensor | None = None,
    ) -> dict[str, Any]:
        """GradScaler's state of this step; without one, whether the gate refuses it."""
        state: dict[str, Any] = {}
        scale, scaler = None, active_scaler(wrapper) if scaled else None
        if scaler is not None:
            # GradScaler replaces this dict in update(); the old one keeps its verdict.
            of_step = torch_api.step_state(scaler, wrapper.optimizer)
            state = dict(scaler=scaler, of_step=of_step)
            # update() writes to it in place, so what the step used is copied now.
            scale = torch_api.scale_tensor(scaler).detach().clone()
            self.recorder.note("scale", scale, name)
        if scaler is None or self.listeners or self.sharded is not None:
            norms = norms_of(params, self.sharded) if whole is None else whole
            if norms is None:
                return state
            # A training step of the user's own may have unscaled them already.
            if scale is not None and not torch_api.is_unscaled(state["of_step"]):
                norms = norms / scale.to(norms.device)
            if self.sharded is not None:  # a rank's own scaler sees its own part
                state["found_inf"] = nonfinite_flag(norms)
            for listener in self.listeners:
                listener(name, wrapper, norms)
            known: Tensor | list[float] = norms
            if scaler is None:
                self._unscaled.add(name)
                late = scaled and cleans_gradients(wrapper) and self.sharded is None
                if late and name not in self._early:
                    self._late[name] = norms
                    judge = self._failures.guarded(self, self._judge_late, True)
                    judge = partial(judge, name, wrapper, params, norms)
                    return dict(around=judged_late(wrapper, judge))
                if scaled and torch_api.can_refuse(wrapper.optimizer):
                    if self.gate is not None:
                        flag = nonfinite_flag(norms)
                        state["around"] = torch_api.refusing(wrapper.optimizer, flag)
                elif self.gate is not None:
                    known = norms.tolist()  # the guard's one wait
                    state["bad"] = not math.isfinite(sum(known))
            self.recorder.note("grad_norms", known, name)
        return state

    def _judge_late(
        self, name: str, wrapper: OptimWrapper, params: list[Tensor], early: Tensor
    ) -> bool:
        """Whether the optimizer may step with the gradients that it has got now."""
        self._late.pop(name, None)
        norms, cleaned = late_norms(params, early, wait=self.gate is not None)
        if cleaned:
            self._warn(told_cleaned(wrapper))
        self.recorder.note("grad_norms", norms, name)
        return not isinstance(norms, list) or math.isfinite(sum(norms))

    def complete(self, record: IterationRecord) -> None:
        """Say of steps without a GradScaler whether their gradients were finite."""
        for name, steps in record.vectors.get("grad_norms", {}).items():
            if name in self._unscaled:
                # None is negative, and Python's numbers do not overflow in this.
                finite = math.isfinite(sum(map(sum, steps)))
                record.add("found_inf", float(not finite), name)
        self._unscaled.clear()

    def _after(self, name: str, state: dict[str, Any]) -> None:
        if (norms := self._late.pop(name, None)) is not None:
            # It does not step this optimizer: from now on they are judged before it.
            self._early.add(name)
            self.recorder.note("grad_norms", norms, name)
        if (scaler := state.get("scaler")) is None:
            return
        found = state["of_step"].get("found_inf_per_device", {})
        whole = [state["found_inf"]] if "found_inf" in state else []
        for value in whole or found.values():
            self.recorder.note("found_inf", value.reshape(()), name)
        self.recorder.note("scale_next", torch_api.scale_tensor(scaler), name)
        self.recorder.note("growth_tracker", torch_api.growth_tensor(scaler), name)
