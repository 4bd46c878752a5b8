"""See the exceptions that leave ``train_step``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Callable, Optional

import torch
from mmengine.optim import OptimWrapperDict
from mmengine.runner import Runner

from . import private, torch_api
from .compiling import not_with_ours
from .failures import Failures
from .messages import warn
from .of_others import first_line
from .patch import wrap
from .run import active_scaler, bare_model, iter_wrappers
from .step_tap import StepTap


@dataclass(frozen=True)
class Raised:
    """An exception because of NaN that a training step ended with.

    Attributes:
        text: Type and message.
        ranks: Where it was raised.
        ours: A change of ours had caused it, and was taken back.
    """

    text: str
    ranks: list[int]
    ours: bool = False


# Deals with an exception, so that training may go on, or returns None.
ErrorHandler = Callable[[Exception], Optional[Raised]]


class ErrorTap:
    """Wraps ``model.train_step`` once and offers its exceptions to the handlers.

    Of an iteration whose exception was dealt with no gradients are left, and its
    accumulation is given up. Its outputs have the names of the last ones, for hooks
    that read ``outputs['loss']`` in every iteration: NaN, as of other iterations that
    are refused; where a change of ours had raised it, what was last logged and
    finite, for there was no NaN. Any other exception goes on its way untouched.

    Args:
        tap: Whose accumulation is given up.
        failures: Bears what goes wrong here.

    Attributes:
        before: Called before each training step.
        handlers: Asked in their order, until one has dealt with the exception.
        raised: What the present iteration ended with and was dealt with, or None.
        last: The same of the last one that did.
    """

    def __init__(self, tap: StepTap, failures: Failures) -> None:
        self.before: list[Callable[[], None]] = []
        self.handlers: list[ErrorHandler] = []
        self.raised: Raised | None = None
        self.last: Raised | None = None
        self._tap, self._failures = tap, failures
        self._model: Any = None
        self._names: tuple[Any, ...] = ()  # of the last outputs
        self._undo: Callable[[], None] = lambda: None

    def attach(self, runner: Runner) -> None:
        """Wrap the model that the training loop calls, with DDP around it if any."""
        if self._model is not None:
            return
        self._model = runner.model

        begin = self._failures.guarded(self, self._begin, [])
        handled = self._failures.guarded(self, self._handled, None)
        stand_in = self._failures.guarded(self, self._stand_in, {})

        def train_step(original: Any, *args: Any, **kwargs: Any) -> Any:
            counts: list[int] = begin(runner.optim_wrapper)
            try:
                try:
                    outputs = original(*args, **kwargs)
                except Exception as e:
                    if not self._once_more(runner.optim_wrapper, counts, e):
                        raise
                    outputs = original(*args, **kwargs)
            except Exception as e:
                self.raised = handled(e)
                if self.raised is None:
                    raise
                self._give_up(runner.optim_wrapper, counts)
                return stand_in(runner, self.raised)
            self._names = tuple(outputs) if isinstance(outputs, dict) else ()
            return outputs

        self._undo = wrap(runner.model, "train_step", train_step)

    def _once_more(
        self, optim_wrapper: Any, counts: list[int], error: Exception
    ) -> bool:
        """Whether the step may come to its end with nothing of ours in graphs."""
        now = [w.inner_count for _, w in iter_wrappers(optim_wrapper)]
        if now != counts or not not_with_ours(error):
            return False  # gradients would be added twice
        warn(
            "torch.compile could not make a graph of the model, perhaps because of the "
            f"hooks of amp_hooks in it ({first_line(error)}), so compiled code has "
            "none from now on: its logits are neither measured nor clamped, and a bad "
            "batch is not looked into. The step is tried once more without."
        )
        return True

    def _begin(self, optim_wrapper: Any) -> list[int]:
        for call in self.before:
            call()
        return [w.inner_count for _, w in iter_wrappers(optim_wrapper)]

    def _handled(self, error: Exception) -> Raised | None:
        answers = (handle(error) for handle in self.handlers)
        return next((raised for raised in answers if raised is not None), None)

    def _stand_in(self, runner: Runner, raised: Raised) -> dict[Any, torch.Tensor]:
        logged = runner.message_hub.log_scalars if raised.ours else {}
        device = next(bare_model(runner).parameters()).device
        outputs = {}
        for name in self._names:
            history = logged.get(f"train/{name}")
            values = [] if history is None else history.data[0].tolist()
            known = (value for value in reversed(values) if math.isfinite(value))
            outputs[name] = torch.full((), next(known, math.nan), device=device)
        return outputs

    def _give_up(self, optim_wrapper: Any, counts: list[int]) -> None:
        single = not isinstance(optim_wrapper, OptimWrapperDict)
        if single and optim_wrapper.inner_count == counts[0]:
            # Raised before the backward pass, which counts; steps would shift.
            private.count_backward(optim_wrapper)
        for _, wrapper in iter_wrappers(optim_wrapper):
            if (scaler := active_scaler(wrapper)) is not None:
                torch_api.forget_step(scaler, wrapper.optimizer)
        self._tap.drop_accumulation(optim_wrapper)

    def detach(self) -> None:
        """Give the model its own ``train_step`` back."""
        if self._model is not None:
            self._undo()
            self._undo = lambda: None
            self._model = None
        self.before.clear()
        self.handlers.clear()
