"""Change the loss scale and the learning rate of a running training."""

from __future__ import annotations

from typing import Any

from mmengine.runner import Runner

from ..engine import private
from ..engine.wrappers import active_scaler, iter_wrappers
from .learning_rate import scale_lr


def all_param_groups(runner: Runner) -> list[dict[str, Any]]:
    """The param groups of every optimizer, with those that hold the base LR."""
    wrappers = iter_wrappers(runner.optim_wrapper)
    return [group for _, wrapper in wrappers for group in wrapper.param_groups]


def all_schedulers(runner: Runner) -> list[Any]:
    """The parameter schedulers of every optimizer."""
    schedulers: Any = runner.param_schedulers or []
    if isinstance(schedulers, dict):
        return [s for own in schedulers.values() for s in own]
    return list(schedulers)


def change_lr(runner: Runner, factor: float) -> None:
    """Multiply the learning rate, now and for the rest of every schedule.

    Args:
        runner: In training; what is changed goes into its checkpoints.
        factor: Greater than 0; the inverse takes a change back.
    """
    # In one go, because optimizers may share a scheduler or a learning rate tensor.
    scale_lr(all_param_groups(runner), all_schedulers(runner), factor)


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
            if scale != state["scale"]:
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
        if scaler and private.static_scale(wrapper) is not None:
            private.set_static_scale(wrapper, scaler.get_scale())
