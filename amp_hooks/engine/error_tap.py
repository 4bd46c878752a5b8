"""See the exceptions that leave ``train_step``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable

from mmengine.optim import OptimWrapperDict
from mmengine.runner import Runner

from . import private, torch_api
from .failures import Failures
from .patch import wrap
from .run import active_scaler, iter_wrappers
from .step_tap import StepTap

# Returns whether it dealt with the exception, so that training may go on.
ErrorHandler = Callable[[Exception], bool]


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


class ErrorTap:
    """Wraps ``model.train_step`` once and offers its exceptions to the handlers.

    An iteration whose exception was dealt with has no outputs, no gradients are left
    of it, and its accumulation is given up. Any other exception goes on its way
    untouched.

    Args:
        tap: Whose accumulation is given up.
        failures: Bears what goes wrong here.

    Attributes:
        before: Called before each training step.
        handlers: Asked in their order, until one has dealt with the exception.
    """

    def __init__(self, tap: StepTap, failures: Failures) -> None:
        self.before: list[Callable[[], None]] = []
        self.handlers: list[ErrorHandler] = []
        self._tap, self._failures = tap, failures
        self._model: Any = None
        self._undo: Callable[[], None] = lambda: None

    def attach(self, runner: Runner) -> None:
        """Wrap the model that the training loop calls, with DDP around it if any."""
        if self._model is not None:
            return
        self._model = runner.model

        begin = self._failures.guarded(self, self._begin, [])
        handled = self._failures.guarded(self, self._handled, False)

        def train_step(original: Any, *args: Any, **kwargs: Any) -> Any:
            counts: list[int] = begin(runner.optim_wrapper)
            try:
                return original(*args, **kwargs)
            except Exception as e:
                if handled(e):
                    self._give_up(runner.optim_wrapper, counts)
                    return {}
                raise

        self._undo = wrap(runner.model, "train_step", train_step)

    def _begin(self, optim_wrapper: Any) -> list[int]:
        for call in self.before:
            call()
        return [w.inner_count for _, w in iter_wrappers(optim_wrapper)]

    def _handled(self, error: Exception) -> bool:
        return any(handle(error) for handle in self.handlers)

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
