"""What is really active in a run."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from numbers import Integral
from typing import Any

import mmengine
import mmengine.dist as dist
import torch
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner

from ..version import __version__
from . import private
from .of_others import attribute
from .run import active_scaler, iter_wrappers


def utc_now() -> str:
    """The time, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def describe_optimizer(name: str, wrapper: OptimWrapper) -> str:
    """One line on what is active in an optimizer wrapper."""
    scaler = active_scaler(wrapper)
    dtype = attribute(wrapper, "cast_dtype")
    if dtype is None:
        dtype = "float32" if scaler is None else "autocast's default"
    scale = "none"
    if scaler is not None:
        static = private.static_scale(wrapper)
        kind = "dynamic" if static is None else "static"
        scale = f"{scaler.get_scale():g} ({kind})"
    return (
        f"optimizer{' ' + name if name else ''}: {type(wrapper).__name__}, "
        f"{type(wrapper.optimizer).__name__}, dtype {dtype}, loss scale {scale}, "
        f"clip_grad {wrapper.clip_grad_kwargs or 'none'}, accumulative_counts "
        f"{private.accumulative_counts(wrapper)}"
    )


def batch_size(loader: Any) -> int | None:
    """Samples of a batch, where they are known.

    A loader that was given a batch sampler has none of its own:
    AspectRatioBatchSampler's, say.
    """
    for holder in (loader, attribute(loader, "batch_sampler")):
        size = attribute(holder, "batch_size")
        if isinstance(size, Integral):
            return int(size)
    return None


def describe_run(
    runner: Runner, hooks: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """What the ledger's first line tells; plain data.

    Args:
        runner: About to train.
        hooks: The hooks of this package, and the arguments given to each.
    """
    loader = attribute(runner.train_loop, "dataloader")
    suites = [h for h in runner.hooks if type(h).__name__ == "StabilityHook"]
    device = next(iter(runner.model.parameters())).device
    name = device.type
    if name == "cuda":
        name = torch.cuda.get_device_name(device)
    return dict(
        time=utc_now(),
        max_iters=runner.max_iters,
        hooks=_plain(hooks),
        suite=_plain(attribute(suites[0], "arguments")) if suites else None,
        optimizers=[
            describe_optimizer(name, wrapper)
            for name, wrapper in iter_wrappers(runner.optim_wrapper)
        ],
        batch_size=batch_size(loader),
        world_size=dist.get_world_size(),
        device=name,
        versions=dict(
            torch=torch.__version__,
            mmengine=mmengine.__version__,
            amp_hooks=__version__,
        ),
    )


def _plain(value: Any) -> Any:
    """Config values as JSON holds them."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return repr(value)
