"""Run chosen modules, and the losses of the heads around them, in bounded FP32."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..engine import torch_api
from ..engine.named import submodule
from ..engine.patch import Guard, unguarded, wrap
from ..engine.recorder import FlightRecorder
from ..engine.tensors import map_tensors, named_tensors
from ..engine.traceable import LayerWhileOn, WhileOn
from ..monitor.logits import infinity_is_overflow

# Where mmdet heads turn predictions into losses: dense heads, and RoI heads.
_LOSS_METHODS = ("loss_by_feat", "loss_and_target")
_HALF = (torch.float16, torch.bfloat16)


class HeadGuard:
    """Wraps modules and losses; what it wraps is protected while it is ``on``.

    A protected module runs as a whole with autocast off on float inputs, and its output
    is clamped. A guarded module that is called inside another one is left alone: it
    computes in FP32 already, and the outer one is clamped at its end. One whose weights
    are in half precision themselves (FSDP's mixed_precision) stays in it, clamped.

    Args:
        recorder: Gets ``clamped`` by module: the fraction of its values that were
            beyond the limit.
        limit: Largest magnitude let through.
        soft: The gradient beyond the limit, see :func:`clamp_logits`.
        guarded: Bears what goes wrong here.

    Attributes:
        on: Whether it protects at present.
    """

    def __init__(
        self,
        recorder: FlightRecorder,
        limit: float,
        soft: bool,
        guarded: Guard = unguarded,
    ) -> None:
        self.guarded = guarded
        self.recorder = recorder
        self.limit = limit
        self.soft = soft
        self.on = False
        # The module that runs protected at present, and its autocast context.
        self._entered: tuple[nn.Module, Any] | None = None
        self._heads: set[nn.Module] = set()
        self._undo: list[Callable[[], None]] = []

    def add(self, model: nn.Module, name: str) -> None:
        """Guard a module of ``model`` by name, and the losses of the heads around it.

        An infinity counts as overflow only in modules that give one no other way;
        elsewhere -inf masks positions, and passes.
        """
        module = submodule(model, name)
        self._guard_output(name, module, keep_neg_inf=not infinity_is_overflow(module))
        parts = name.split(".")
        for length in range(len(parts), 0, -1):
            head = submodule(model, ".".join(parts[:length]))
            if head not in self._heads:
                self._heads.add(head)
                self._guard_losses(head)

    def remove(self) -> None:
        """Give the model back as it was."""
        self.on = False
        while self._undo:
            self._undo.pop()()
        self._heads.clear()

    def _guard_output(self, name: str, module: nn.Module, keep_neg_inf: bool) -> None:
        def before(module: nn.Module, args: Any, kwargs: Any) -> Any:
            # Evaluation has both off. Activation checkpointing of the re-entrant kind
            # runs the forward pass of training without gradients.
            training = module.training or torch.is_grad_enabled()
            if not training or self._entered is not None:
                return None
            if any(p.dtype in _HALF for p in module.parameters()):
                self._entered = (module, contextlib.nullcontext())
                return None
            context = _full_precision(module, (args, kwargs))
            floats = _as_float(args), _as_float(kwargs)
            context.__enter__()
            self._entered = (module, context)
            return floats

        def clamp(x: Tensor) -> Tensor:
            if not x.is_floating_point():
                return x
            clamped, fraction = clamp_logits(x, self.limit, self.soft, keep_neg_inf)
            self.recorder.note("clamped", fraction, name)
            return clamped

        def after(module: nn.Module, args: Any, output: Any) -> Any:
            if self._entered is None or self._entered[0] is not module:
                return None
            self._entered[1].__exit__(None, None, None)
            self._entered = None
            return clamped(output)

        clamped = self.guarded(lambda output: map_tensors(clamp, output))
        handle = module.register_forward_pre_hook(
            WhileOn(self, self.guarded(before)), with_kwargs=True
        )
        # Also if the module raises, or autocast would stay off for good.
        at_its_end = torch_api.after_each_call(module, WhileOn(self, after))
        self._undo += [handle.remove, at_its_end]

    def _guard_losses(self, head: nn.Module) -> None:
        for method in _LOSS_METHODS:
            if hasattr(head, method):
                self._guard_loss(head, method)

    def _guard_loss(self, head: nn.Module, method: str) -> None:
        def floats(args: Any, kwargs: Any) -> tuple[Any, Any, Any]:
            context = _full_precision(head, (args, kwargs))
            return context, _as_float(args), _as_float(kwargs)

        in_floats = self.guarded(floats)

        def in_fp32(original: Any, *args: Any, **kwargs: Any) -> Any:
            as_they_are = contextlib.nullcontext(), args, kwargs
            context, args, kwargs = in_floats(args, kwargs) or as_they_are
            with context:
                return original(*args, **kwargs)

        self._undo.append(wrap(head, method, LayerWhileOn(self, in_fp32)))


def _full_precision(module: nn.Module, inputs: Any) -> Any:
    """A context without autocast, on the device of the inputs."""
    tensors = [t for _, t in named_tensors(inputs)] or list(module.parameters())[:1]
    device = tensors[0].device.type if tensors else "cpu"
    if not torch_api.is_autocast_enabled(device):
        # Also where another guard has switched it off: these contexts must not end
        # in another order than they began, and forward hooks run in that other order.
        return contextlib.nullcontext()
    return torch.autocast(device, enabled=False)


def _as_float(tree: Any) -> Any:
    def cast(x: Tensor) -> Tensor:
        return x.float() if x.dtype in _HALF else x

    return map_tensors(cast, tree)


def clamp_logits(
    logits: Tensor, limit: float, soft: bool = False, keep_neg_inf: bool = False
) -> tuple[Tensor, Tensor]:
    """Clamp to ``[-limit, limit]``.

    Inside the limit values and gradients are unchanged; NaN stays NaN. Beyond the limit
    the gradient is zero, so that a value out there stays out there until something else
    moves it. With ``soft`` it passes where gradient descent along it leads back towards
    the limit, and is zero where it leads further out: a straight-through estimator
    (Bengio et al. 2013, arXiv:1308.3432) with its harmful half left out.
    ``tfp.math.clip_by_value_preserve_gradient`` of TensorFlow Probability lets both
    halves pass. One byte a value is kept for the backward pass, and the output.

    Args:
        logits: Of any shape and floating dtype.
        limit: Largest magnitude let through.
        soft: Let the gradient beyond the limit pass where it heals.
        keep_neg_inf: Values of -inf are there by design, to mask positions: they stay,
            with their gradient, and do not count as beyond the limit.

    Returns:
        The clamped tensor and the fraction of values beyond the limit, a 0-d tensor.
    """
    with torch.no_grad():
        side = _side(logits, limit, keep_neg_inf)
        fraction = torch.count_nonzero(side) / max(side.numel(), 1)
    clamped: Tensor = _Clamp.apply(  # type: ignore[no-untyped-call]
        logits, side, limit, soft, keep_neg_inf
    )
    return clamped, fraction


def _side(logits: Tensor, limit: float, keep_neg_inf: bool) -> Tensor:
    """1 above the limit, -1 below it, else 0; one byte a value, two meanwhile."""
    side = (logits > limit).view(torch.int8)
    below = logits < -limit
    if keep_neg_inf:
        below &= logits != -math.inf
    return side.sub_(below.view(torch.int8))


class _Clamp(torch.autograd.Function):
    """As torch.clamp, but the gradient keeps its memory layout.

    torch.clamp hands on a gradient in another layout than it got. The values are the
    same, but a convolution then sums its bias gradient in another order, and the last
    bit of a weight changes although nothing was clamped.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        side: Tensor,
        limit: float,
        soft: bool,
        keep_neg_inf: bool,
    ) -> Tensor:
        ctx.save_for_backward(side)
        ctx.soft = soft
        clamped = logits.clamp(-limit, limit)
        if keep_neg_inf:
            clamped.masked_fill_(logits == -math.inf, -math.inf)
        return clamped

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (side,) = ctx.saved_tensors
        if ctx.soft:  # only what would drive a value further out
            blocked = ((side > 0) & (grad < 0)).logical_or_((side < 0) & (grad > 0))
        else:
            blocked = side != 0
        # masked_fill without the underscore would change the layout as well.
        inner = grad.clone().masked_fill_(blocked, 0.0)
        return inner, None, None, None, None
