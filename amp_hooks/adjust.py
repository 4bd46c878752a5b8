"""Lower the loss scale and the learning rate of a running training."""

from __future__ import annotations

from typing import Any

from mmengine.runner import Runner

from .core.lr import scale_lr
from .step_tap import active_scaler, iter_wrappers


def lower_lr(runner: Runner, factor: float) -> None:
    """Multiply the learning rate, now and for the rest of every schedule."""
    schedulers: Any = runner.param_schedulers or []
    for name, wrapper in iter_wrappers(runner.optim_wrapper):
        own = schedulers[name] if isinstance(schedulers, dict) else schedulers
        scale_lr(wrapper.param_groups, own, factor)


def lower_loss_scale(runner: Runner, factor: float, floor: float) -> float | None:
    """Multiply every loss scale, static ones too, but not below ``floor``.

    Returns:
        The smallest scale now, or ``None`` if there is no loss scale.
    """
    scales = []
    for _, wrapper in iter_wrappers(runner.optim_wrapper):
        if (scaler := active_scaler(wrapper)) is not None:
            state = scaler.state_dict()
            # A scale that was configured below the floor is not raised to it.
            lowest = min(floor, max(state["scale"], 1.0))
            scale = max(lowest, state["scale"] * factor)
            scaler.load_state_dict(dict(state, scale=scale, _growth_tracker=0))
            scales.append(scale)
    pin_static_scale(runner)
    return min(scales, default=None)


def pin_static_scale(runner: Runner) -> None:
    """Let a static loss scale stay what the scaler now holds.

    MMEngine writes the configured number back at the end of every step.
    """
    for _, wrapper in iter_wrappers(runner.optim_wrapper):
        scaler = active_scaler(wrapper)
        if scaler and getattr(wrapper, "_scale_update_param", None) is not None:
            wrapper._scale_update_param = scaler.get_scale()
