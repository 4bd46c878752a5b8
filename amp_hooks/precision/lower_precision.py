"""Change the precision of a running training in place, and change it back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner

from ..engine import private, torch_api
from ..engine.of_others import has, text_of
from ..engine.run import active_scaler, iter_wrappers

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}  # to fall back to


class LowerPrecision:
    """The mixed precision that an optimizer wrapper was configured with.

    Args:
        wrapper: AmpOptimWrapper or one of its subclasses.
        initial_scale: As configured; GradScaler forgets it when it loads a state.
    """

    def __init__(self, wrapper: Any, initial_scale: float) -> None:
        self._wrapper = wrapper
        self._initial_scale = initial_scale
        self._dtype = wrapper.cast_dtype
        self._scaler: Any = None  # put away
        self.dtype = self._dtype or torch.float16  # autocast's default

    def leave(self, dtype: torch.dtype) -> None:
        """Compute in ``dtype`` from the next iteration on, bfloat16 or float32.

        The loss scaler is put away: a disabled one takes its place. What is saved and
        loaded meanwhile is the state of the one put away, so that checkpoints stay
        good for a run in the configured precision.
        """
        wrapper = self._wrapper
        vars(wrapper).pop("optim_context", None)
        if dtype == torch.float32:
            wrapper.optim_context = partial(OptimWrapper.optim_context, wrapper)
        else:
            wrapper.cast_dtype = dtype
        if self._scaler is None and (scaler := active_scaler(wrapper)) is not None:
            stand_in: Any = torch_api.cpu_grad_scaler(enabled=False)
            stand_in.state_dict = scaler.state_dict
            stand_in.load_state_dict = scaler.load_state_dict
            self._scaler, wrapper.loss_scaler = scaler, stand_in

    def enter(self, scale_floor: float) -> None:
        """Go back to the configured precision.

        Args:
            scale_floor: A loss scale that had fallen so low starts anew.
        """
        wrapper = self._wrapper
        vars(wrapper).pop("optim_context", None)
        wrapper.cast_dtype = self._dtype
        if self._scaler is None:
            return
        scaler, self._scaler = self._scaler, None
        wrapper.loss_scaler = scaler
        state = scaler.state_dict()
        if not state["scale"] > scale_floor and private.static_scale(wrapper) is None:
            state = dict(state, scale=self._initial_scale, _growth_tracker=0)
            scaler.load_state_dict(state)


class MixedPrecision:
    """The mixed precision of a run: that of each optimizer which has one.

    Args:
        runner: With its optimizers as they were configured; ``None``: of no optimizer.
        initial_scales: Loss scales to begin anew with, by optimizer; the present ones
            where it names none.

    Attributes:
        dtypes: That are computed in, as configured; empty in an FP32 run.
    """

    def __init__(
        self,
        runner: Runner | None = None,
        initial_scales: Mapping[str, float] | None = None,
    ) -> None:
        self._wrappers: list[LowerPrecision] = []
        wrappers = iter_wrappers(runner.optim_wrapper) if runner is not None else ()
        for name, wrapper in wrappers:
            if has(wrapper, "cast_dtype"):
                scale = (initial_scales or {}).get(name)
                if scale is None:
                    scaler = active_scaler(wrapper)
                    scale = 1.0 if scaler is None else float(scaler.get_scale())
                self._wrappers.append(LowerPrecision(wrapper, scale))
        self.dtypes = [wrapper.dtype for wrapper in self._wrappers]

    def leave(self, precision: str) -> None:
        """Compute in another one from the next iteration on, a key of ``DTYPES``."""
        for wrapper in self._wrappers:
            wrapper.leave(DTYPES[precision])

    def enter(self, scale_floor: float) -> None:
        """Go back; see :meth:`LowerPrecision.enter`."""
        for wrapper in self._wrappers:
            wrapper.enter(scale_floor)


def no_bfloat16(error: Exception) -> str | None:
    """What was raised, if an operator has no bfloat16 version."""
    said = text_of(error)
    lacks = re.search("bfloat16", said, re.IGNORECASE)
    return f"{type(error).__name__}: {said}" if lacks else None


def bfloat16_runs_on(device: torch.device) -> bool:
    """Whether autocast can compute in bfloat16 there."""
    if device.type == "cpu":
        return True
    module = getattr(torch, device.type, None)
    check = getattr(module, "is_bf16_supported", None)
    if check is None:
        return False
    try:
        # Emulated bfloat16, as on CUDA devices before Ampere, is slow and incomplete.
        return bool(check(including_emulation=False))
    except TypeError:  # not CUDA's
        return bool(check())
