"""Mixed precision on a CPU, for rehearsals without a GPU."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.device import is_cuda_available, is_npu_available
from mmengine.logging import print_log
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from torch import Tensor, nn

from ..engine import private, torch_api
from ..registry import OPTIM_WRAPPERS
from .half_rehearsal import half_rehearsal


@OPTIM_WRAPPERS.register_module()
class CpuAmpOptimWrapper(AmpOptimWrapper):
    """A drop-in for :class:`mmengine.optim.AmpOptimWrapper` that runs on a CPU.

    With ``dtype='float16'`` it rehearses FP16 training in FP32 arithmetic. MMEngine
    refuses float16 on a CPU, and torch's own CPU float16 is 10 to 30 times slower.

    What the rehearsal reproduces: every operation that autocast runs in FP16 has its
    inputs, weights and outputs rounded to half precision, forward and backward, so
    activations, their gradients and weight gradients overflow beyond 65504, and small
    gradients are flushed to zero, as on a GPU. The loss scale is that of a real
    ``torch.amp.GradScaler('cpu')``. ``autocast(enabled=False)`` is honoured.

    What it does not: operations between these (additions, activations, BatchNorm,
    mmcv's own operators) stay in FP32, where a GPU would keep them in half precision
    and a residual sum could overflow; tensors are float32 throughout, so code that
    fails on half inputs does not fail here; attention called through
    ``nn.MultiheadAttention`` is rounded at its ends only; and speed and memory are
    those of FP32.

    With ``dtype='bfloat16'`` it is plain ``torch.autocast('cpu')``. mmcv's NMS refuses
    bfloat16 on a CPU, so two-stage detectors cannot train that way there.

    Args:
        loss_scale (float or str or dict): ``'dynamic'``, a static scale as a float, or
            the arguments of ``torch.amp.GradScaler``. Defaults to 'dynamic'.
        dtype (str or torch.dtype, optional): 'float16' or 'bfloat16'. Defaults to None,
            which means 'float16', as on a GPU.
        use_fsdp (bool): Not available on a CPU. Defaults to False.
        **kwargs: Arguments of :class:`mmengine.optim.OptimWrapper`, such as
            ``optimizer``, ``clip_grad`` and ``accumulative_counts``.

    Raises:
        TypeError: ``loss_scale`` is none of the above; an integer is not, as in
            AmpOptimWrapper.
        ValueError: ``dtype`` is another one, or ``use_fsdp`` is set.

    Examples:
        >>> optim_wrapper = dict(
        ...     type='amp_hooks.CpuAmpOptimWrapper',
        ...     dtype='float16',
        ...     optimizer=dict(type='SGD', lr=0.02))
    """

    def __init__(
        self,
        loss_scale: float | str | dict = "dynamic",
        dtype: str | torch.dtype | None = None,
        use_fsdp: bool = False,
        **kwargs: Any,
    ) -> None:
        if use_fsdp:
            raise ValueError(
                "CpuAmpOptimWrapper: use_fsdp=True is not available on a CPU; "
                "leave it out, or use AmpOptimWrapper on a GPU."
            )
        name = str(dtype if dtype is not None else torch.float16).rsplit(".", 1)[-1]
        if name not in ("float16", "bfloat16"):
            raise ValueError(
                f"CpuAmpOptimWrapper: dtype must be 'float16' or 'bfloat16', got "
                f"{dtype!r}. For float32 use OptimWrapper."
            )
        # AmpOptimWrapper's own constructor insists on an accelerator; everything
        # else of it (backward, step, state_dict, load_state_dict) is used as it is.
        OptimWrapper.__init__(self, **kwargs)
        self.cast_dtype = getattr(torch, name)
        private.set_static_scale(self, None)
        if loss_scale == "dynamic":
            self.loss_scaler = torch_api.cpu_grad_scaler()
        elif isinstance(loss_scale, float):
            private.set_static_scale(self, loss_scale)
            self.loss_scaler = torch_api.cpu_grad_scaler(init_scale=loss_scale)
        elif isinstance(loss_scale, dict):
            self.loss_scaler = torch_api.cpu_grad_scaler(**loss_scale)
        else:
            raise TypeError(
                "CpuAmpOptimWrapper: loss_scale must be 'dynamic', a float or a dict "
                f"of GradScaler arguments, got {loss_scale!r} of type "
                f"{type(loss_scale).__name__}. For a static scale write 512.0, not 512."
            )
        if is_cuda_available() or is_npu_available():
            print_log(
                "CpuAmpOptimWrapper rehearses mixed precision on a CPU, but this "
                "machine has an accelerator: use type='AmpOptimWrapper' there.",
                logger="current",
                level=logging.WARNING,
            )

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        """Scale the loss and propagate it back.

        Raises:
            RuntimeError: The loss is not on the CPU.
        """
        if loss.device.type != "cpu":
            raise RuntimeError(
                f"CpuAmpOptimWrapper got a loss on {loss.device}. It works on the CPU "
                "only; use optim_wrapper=dict(type='AmpOptimWrapper', ...) here."
            )
        super().backward(loss, **kwargs)

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Enter mixed precision, and skip gradient sync while accumulating."""
        precision = (
            half_rehearsal()
            if self.cast_dtype == torch.float16
            else torch.autocast("cpu", dtype=self.cast_dtype)
        )
        with OptimWrapper.optim_context(self, model), precision:
            yield
