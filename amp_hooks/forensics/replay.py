"""Run the forward pass of an iteration once more."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Callable, Dict

import torch
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from ..engine import private, torch_api
from ..engine.batches import Contents, batch_tensors
from ..engine.of_others import text_of
from ..engine.preserved import alone
from ..engine.rng import States, restore_rng
from ..engine.run import bare_model, iter_wrappers
from ..engine.runtime import Runtime
from ..engine.tensors import nonfinite_names
from ..engine.unnoticed import unnoticed
from ..precision.half_rehearsal import rehearsing_half
from .first_operation import raised_at
from .forward_trace import ForwardTrace, Frame, Origin

# Gets gradients by the names of their parameters.
OnGrads = Callable[[Dict[str, Tensor]], None]


class Call:
    """What the model was called with, by reference, and the generators' state then.

    Args:
        args: Positional arguments, after the data preprocessor.
        kwargs: Keyword arguments.
        rng: Of :func:`capture_rng`.
    """

    def __init__(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], rng: States
    ) -> None:
        self.args, self.kwargs, self.rng = args, kwargs, rng
        self._contents = Contents((args, kwargs))

    @contextmanager
    def as_given(self) -> Iterator[None]:
        """The arguments consist meanwhile of what they consisted of then.

        Forward passes exchange fields of data samples (RTMDet-Ins its masks).
        """
        now = Contents((self.args, self.kwargs))
        self._contents.restore()
        try:
            yield
        finally:
            now.restore()


@dataclass
class Replay:
    """What the second run of a forward pass showed.

    Attributes:
        call: The one of the iteration's calls in which the incident is; else the last.
        origin: Where it arises; ``None`` if everything was finite.
        frames: The last module calls.
        losses: Each loss term.
        error: What it raised, and where.
        nonfinite_grads: Parameters whose gradient, or its norm, is not finite.
        grads: Parameters that got a gradient.
        skipped: Why the backward pass was not run.
        dtype: What was computed in: ``float32``, or autocast's.
    """

    call: Call
    origin: Origin | None = None
    frames: list[Frame] = field(default_factory=list)
    losses: dict[str, float] = field(default_factory=dict)
    error: str = ""
    nonfinite_grads: list[str] = field(default_factory=list)
    grads: int = 0
    skipped: str = ""
    dtype: str = "float32"

    @property
    def finite(self) -> bool:
        """Whether forward and backward pass were run and nothing was found."""
        return not (self.origin or self.error or self.nonfinite_grads or self.skipped)


def run_again(
    runner: Runner, runtime: Runtime, calls: list[Call], scale: float, frames: int
) -> Replay:
    """Run an iteration's calls of the model again, as they were run, up to an incident.

    In the precision, with the clamp and with the injected faults of the iteration; the
    model, the random number generators and the monitors know nothing of it. With
    several processes this one is alone: no collective waits for the others.

    Args:
        runner: Its model is in the state in which the iteration found it.
        runtime: Is kept quiet meanwhile.
        calls: At least one.
        scale: Loss scale of the step, for the backward pass.
        frames: So many last module calls are kept.
    """
    model = bare_model(runner)
    wrapper = next(wrapper for _, wrapper in iter_wrappers(runner.optim_wrapper))
    result = Replay(calls[-1])
    with ExitStack() as stack:
        stack.enter_context(runtime.quiet())
        stack.enter_context(alone())
        for again in runtime.replayed:
            stack.enter_context(again())
        for call in calls:
            result = run_call(model, wrapper, call, scale, frames)
            if not result.finite:
                break
    return result


def run_call(
    model: nn.Module,
    wrapper: OptimWrapper,
    call: Call,
    scale: float,
    frames: int,
    on_grads: OnGrads | None = None,
) -> Replay:
    """Run one forward pass, and the backward pass if it comes so far.

    Args:
        model: In training mode; it is left as it was.
        wrapper: Its precision is used.
        call: What the model is called with.
        scale: The loss is multiplied by it.
        frames: So many last module calls are kept. With 0 the modules are not watched,
            which is many times quicker, and losses and gradients alone tell.
        on_grads: Is given the gradients by the names of their parameters.
    """
    with unnoticed(model), call.as_given():
        restore_rng(call.rng)
        return _run(model, wrapper, call, scale, frames, on_grads)


def _run(
    model: nn.Module,
    wrapper: OptimWrapper,
    call: Call,
    scale: float,
    frames: int,
    on_grads: OnGrads | None,
) -> Replay:
    result = Replay(call)
    trace = ForwardTrace(model, frames, batch_tensors) if frames else None
    total = None
    device = next(model.parameters()).device.type
    with torch.enable_grad(), wrapper.optim_context(model):
        if rehearsing_half():
            result.dtype = "float16"
        elif torch_api.is_autocast_enabled(device):
            result.dtype = str(torch_api.autocast_dtype(device)).rsplit(".", 1)[-1]
        try:
            with trace or nullcontext():
                total = _losses(model, call, result)
        except torch.cuda.OutOfMemoryError:
            raise  # of the second run, not of the iteration
        except Exception as e:  # as the iteration may have done
            result.error = f"{in_a_line(e)} ({raised_at(e)})"
    operation = None
    if trace is not None:
        result.frames = list(trace.frames)
        result.origin = trace.origin
        operation = trace.last_operation()
    bad = [name for name, loss in result.losses.items() if not math.isfinite(loss)]
    if result.origin is None and bad:
        result.origin = Origin("loss", "", bad, operation=operation)
    if total is not None:
        total = total * scale / private.accumulative_counts(wrapper)
        _gradients(model, total, result, on_grads)
    return result


def _losses(model: Any, call: Call, result: Replay) -> Tensor | None:
    losses = model(*call.args, **call.kwargs)
    if not isinstance(losses, dict):
        return None  # not the loss mode, but something of a train_step of their own
    total, terms = model.parse_losses(losses)
    result.losses = {
        name: float(loss.detach())
        for name, loss in terms.items()
        if isinstance(loss, Tensor) and loss.numel() == 1 and "loss" in name
    }
    return total


def _gradients(
    model: nn.Module, total: Tensor, result: Replay, on_grads: OnGrads | None
) -> None:
    """Which parameters get a gradient that is not finite; ``.grad`` stays untouched."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    try:
        # Not backward(), of which DDP would hear.
        grads = torch.autograd.grad(total, [p for _, p in named], allow_unused=True)
    except Exception as e:  # no memory, for one
        result.skipped = in_a_line(e)
        return
    if on_grads is not None:
        given = {n: g for (n, _), g in zip(named, grads) if g is not None}
        on_grads(given)
    # By their norms, as the optimizer step is judged: a norm may overflow by itself.
    norms = {
        name: torch.linalg.vector_norm(dense(grad).float())
        for (name, _), grad in zip(named, grads)
        if grad is not None
    }
    result.grads = len(norms)
    result.nonfinite_grads = nonfinite_names(norms, limit=len(norms))


def dense(grad: Tensor) -> Tensor:
    """The values that a gradient holds, as real numbers; a sparse one has no norm."""
    values = grad.coalesce().values() if grad.is_sparse else grad
    return torch.view_as_real(values.resolve_conj()) if values.is_complex() else values


def in_a_line(error: Exception) -> str:
    """Type and message of an exception, of several lines the first."""
    message = text_of(error).strip().split("\n", 1)[0]
    return f"{type(error).__name__}: {message}"
