"""Rehearse FP16 autocast on a device that has no fast FP16 arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..engine import torch_api
from ..engine.tensors import map_tensors

# Operations that autocast runs in FP16, by the name of the Python function. Source:
# https://pytorch.org/docs/stable/amp.html#cuda-ops-that-can-autocast-to-float16
FP16_OPS = frozenset(
    "__matmul__ __rmatmul__ addbmm addmm addmv addr baddbmm bmm chain_matmul conv1d "
    "conv2d conv3d conv_tbc conv_transpose1d conv_transpose2d conv_transpose3d einsum "
    "linear linalg_multi_dot matmul mm multi_dot mv prelu scaled_dot_product_attention "
    # One function to Python, so its inner products are rounded only at its ends.
    "multi_head_attention_forward".split()
)

_depth = 0  # of half_rehearsal() contexts


def round_to_half(x: Tensor) -> Tensor:
    """Round a float32 tensor to FP16 and back; beyond 65504 it becomes infinite.

    The two casts are recorded by autograd, so the gradient is rounded on its way
    back too, and overflows where an FP16 gradient would.
    """
    return x.half().float() if x.dtype == torch.float32 else x


class HalfRounding(TorchFunctionMode):
    """Round inputs and outputs of the FP16 operations through half precision.

    It does nothing where autocast is switched off, so code that protects itself
    with ``autocast(enabled=False)`` is as safe in the rehearsal as it is on a GPU.
    As in autocast, a parameter is cast once per iteration and its gradients of
    several uses are summed before they are rounded.
    """

    def __init__(self) -> None:
        super().__init__()
        self._weights: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(
            func, "__name__", ""
        ) not in FP16_OPS or not torch_api.is_autocast_enabled("cpu"):
            return func(*args, **kwargs)
        args = [self._cast(a) for a in args]
        kwargs = {k: self._cast(v) for k, v in kwargs.items()}
        return map_tensors(round_to_half, func(*args, **kwargs))

    def _cast(self, value: Any) -> Any:
        return map_tensors(self._cast_tensor, value)

    def _cast_tensor(self, x: Tensor) -> Tensor:
        if not (x.is_leaf and x.requires_grad and torch.is_grad_enabled()):
            return round_to_half(x)
        # The tensor is kept beside its copy: an id is unique only while it lives.
        if id(x) not in self._weights:
            self._weights[id(x)] = (x, round_to_half(x))
        return self._weights[id(x)][1]


def rehearsing_half() -> bool:
    """Whether what is computed now is rounded to half precision."""
    return _depth > 0 and torch_api.is_autocast_enabled("cpu")


@contextmanager
def half_rehearsal() -> Iterator[None]:
    """Autocast to FP16 on the CPU, rehearsed in FP32 arithmetic.

    Inside, ``torch.is_autocast_enabled('cpu')`` is true with dtype float32: a cast
    to what the tensors already are. So autocast itself changes nothing, and
    ``torch.autocast('cpu', enabled=False)`` switches the rounding off.
    """
    global _depth
    torch_api.check_rehearsal()
    was = torch_api.is_autocast_enabled("cpu"), torch_api.autocast_dtype("cpu")
    _depth += 1
    torch_api.set_cpu_autocast(True, torch.float32)
    try:
        with HalfRounding():
            yield
    finally:
        _depth -= 1
        torch_api.set_cpu_autocast(*was)
