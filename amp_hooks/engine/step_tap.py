"""See the gradients where they can be seen: around ``optim_wrapper.step``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from mmengine.optim import OptimWrapper
from torch import Tensor

from . import private
from .recorder import FlightRecorder
from .run import active_scaler, iter_wrappers, trained_parameters
from .tensors import parameter_grad_norms

# Called with (optimizer name, wrapper, per-parameter norms, loss scale or None).
GradientListener = Callable[[str, OptimWrapper, Tensor, "Tensor | None"], None]

# Subclasses of OptimWrapper whose gradients are another engine's all the same.
_CLOSED = ("ApexOptimWrapper", "ColossalAIOptimWrapper")


class Gate(Protocol):
    """Stands before every optimizer step; StepGuardHook's.

    Attributes:
        dropped: Optimizers whose accumulation has been given up: the next step is not
            taken.
        on_backward: Called before each backward pass.
    """

    dropped: set[str]
    on_backward: list[Callable[[], None]]

    def before_backward(
        self, name: str, params: list[Tensor], loss: Tensor
    ) -> Tensor | None:
        """The loss to propagate, or ``None`` if it leads nowhere."""

    def before_step(self, name: str, params: list[Tensor]) -> None:
        """The gradients are complete, and nobody has looked at them yet."""

    def opens(self, name: str, params: list[Tensor]) -> bool:
        """Whether there is a step to take at all; nothing waits for the device."""


class StepTap:
    """Wraps ``backward`` and ``step`` of each optimizer and notes scale and overflow.

    ``OptimWrapper.update_params`` runs backward, step and zero_grad in one go, so no
    hook event ever sees a gradient. Without a gate nothing here changes a gradient or
    waits for one.

    Args:
        recorder: Gets ``backward_loss`` of each backward pass, and ``scale``,
            ``scale_next``, ``growth_tracker`` and ``found_inf`` of each step.

    Attributes:
        listeners: Called before each step with the norms of its gradients.
        gate: Refuses steps, if there is one.
        skipped: A step was refused in this iteration without looking at gradients.
        divisors: What the last loss of each optimizer had been divided by, for the
            gradients of several iterations to add up to those of a mean.
    """

    def __init__(self, recorder: FlightRecorder) -> None:
        self.recorder = recorder
        self.listeners: list[GradientListener] = []
        self.gate: Gate | None = None
        self.skipped = False
        self.divisors: dict[str, int] = {}
        self._wrapped: list[OptimWrapper] = []
        self._by_name: dict[str, OptimWrapper] = {}

    def attach(self, optim_wrapper: Any) -> None:
        """Wrap every optimizer that is not wrapped yet.

        Raises:
            TypeError: An optimizer wrapper is of a kind whose gradients are not ours
                to see (Apex, DeepSpeed and others with an engine of their own).
        """
        for name, wrapper in iter_wrappers(optim_wrapper):
            if wrapper in self._wrapped:
                continue
            kind = type(wrapper).__name__
            if not isinstance(wrapper, OptimWrapper) or kind in _CLOSED:
                raise TypeError(
                    f"amp_hooks cannot watch optim_wrapper type {kind!r}: it keeps "
                    "gradients and loss scale to itself. Use OptimWrapper, "
                    "AmpOptimWrapper or OptimWrapperDict."
                )
            self._wrap(name, wrapper)
            self._wrapped.append(wrapper)
            self._by_name[name] = wrapper

    def scale_is_fixed(self, name: str) -> bool:
        """Whether nobody is going to lower a loss scale, however often it overflows.

        A static one is written back by MMEngine at the end of every step.
        """
        wrapper = self._by_name.get(name)
        return self.gate is None and private.static_scale(wrapper) is not None

    def drop_accumulation(self, optim_wrapper: Any) -> None:
        """Clear the gradients; given a gate, what was accumulated takes no step."""
        for name, wrapper in iter_wrappers(optim_wrapper):
            wrapper.zero_grad()
            if self.gate and wrapper.inner_count % private.accumulative_counts(wrapper):
                self.gate.dropped.add(name)

    def detach(self) -> None:
        """Give every optimizer its own methods back."""
        for wrapper in self._wrapped:
            del wrapper.backward, wrapper.step
        self._wrapped.clear()
        self._by_name.clear()
        self.listeners.clear()
        self.gate = None

    def _wrap(self, name: str, wrapper: OptimWrapper) -> None:
        original_backward, original_step = wrapper.backward, wrapper.step

        def backward(loss: Tensor, **kwargs: Any) -> None:
            if isinstance(loss, Tensor) and loss.numel() == 1:
                self.divisors[name] = private.loss_divisor(wrapper)
                self.recorder.note("backward_loss", loss.reshape(()), name, "sum")
            if self.gate is not None:
                passed = self.gate.before_backward(
                    name, trained_parameters(wrapper), loss
                )
                if passed is None:
                    private.count_backward(wrapper)  # as the original does
                    return
                loss = passed
            original_backward(loss, **kwargs)

        def step(**kwargs: Any) -> None:
            params = trained_parameters(wrapper)
            if self.gate is not None and not self.gate.opens(name, params):
                self.skipped = True
                return
            scaler = active_scaler(wrapper)
            if self.gate is not None:
                self.gate.before_step(name, params)
            state, bad = self._before(name, wrapper, scaler)
            # GradScaler decides by itself; without one this is the guard's one wait.
            if self.gate is not None and bad is not None and bad.item():
                return
            original_step(**kwargs)
            if scaler is not None:
                for value in state.get("found_inf_per_device", {}).values():
                    self.recorder.note("found_inf", value.reshape(()), name)
                self.recorder.note("scale_next", private.scale_tensor(scaler), name)
                tracker = private.growth_tensor(scaler)
                self.recorder.note("growth_tracker", tracker, name)

        wrapper.backward, wrapper.step = backward, step

    def _before(
        self, name: str, wrapper: OptimWrapper, scaler: Any
    ) -> tuple[dict, Tensor | None]:
        """GradScaler's state of this step; without one, whether gradients are bad."""
        state, scale, bad = {}, None, None
        if scaler is not None:
            # GradScaler replaces this dict in update(); the old one keeps its verdict.
            state = private.step_state(scaler, wrapper.optimizer)
            # update() writes to it in place, so what the step used is copied now.
            scale = private.scale_tensor(scaler).detach().clone()
            self.recorder.note("scale", scale, name)
        if scaler is None or self.listeners:
            norms = parameter_grad_norms(trained_parameters(wrapper))
            if norms is not None:
                if scaler is None:
                    bad = ~torch.isfinite(norms).all()
                    self.recorder.note("found_inf", bad.float(), name)
                # A training step of the user's own may have unscaled them already.
                unscaled = private.is_unscaled(state)
                for listener in self.listeners:
                    listener(name, wrapper, norms, None if unscaled else scale)
        return state, bad
