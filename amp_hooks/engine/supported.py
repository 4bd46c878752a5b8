"""What takes weights, gradients or optimizer state out of our reach."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mmengine.dist as dist
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner

from ..errors import UnsupportedError
from .run import iter_wrappers
from .sharded import is_fsdp, is_sharded
from .torch_fsdp import keeps_parameters

# Parts of class names, why, and what to use instead. No class is imported for it:
# most of them are of packages that are not there.
_REFUSED = {
    "DTensor": "each rank has a part of the model only (fully_shard, or parallelize)",
    "DeepSpeed": "its engine keeps gradients and optimizer to itself",
    "ColossalAI": "its booster keeps gradients and optimizer to itself",
    "ZeroRedundancyOptimizer": "each rank has a part of the optimizer's state only",
    "ApexOptimWrapper": "it keeps gradients and loss scale to itself",
}
_SHARDED = (
    "FlexibleRunner with strategy=dict(type='FSDPStrategy', model_wrapper=dict("
    "type='MMFullyShardedDataParallel', use_orig_params=True)), sharding_strategy "
    "'FULL_SHARD' or 'SHARD_GRAD_OP', and one optimizer"
)
_INSTEAD = {
    "DTensor": _SHARDED,
    "ZeroRedundancyOptimizer": "the optimizer that it wraps "
    "(optimizer=dict(type='AdamW', ...))",
    "ApexOptimWrapper": "AmpOptimWrapper",
}
# Subclasses of OptimWrapper whose gradients are another engine's all the same.
_CLOSED = ("ApexOptimWrapper", "ColossalAIOptimWrapper")
_DDP = (
    "MMDistributedDataParallel (with FlexibleRunner strategy=dict(type='DDPStrategy'))"
)


def refuse_closed(wrapper: object) -> None:
    """Refuse an optim_wrapper whose gradients are not ours to see.

    Raises:
        UnsupportedError: It is Apex's, or another engine's.
    """
    kind = type(wrapper).__name__
    if not isinstance(wrapper, OptimWrapper) or kind in _CLOSED:
        raise UnsupportedError(
            f"amp_hooks cannot watch optim_wrapper type {kind!r}: it keeps gradients "
            "and loss scale to itself. Use OptimWrapper, AmpOptimWrapper or "
            "OptimWrapperDict."
        )


def refuse_unsupported(hook: object, runner: Runner) -> None:
    """Refuse a run whose state a hook cannot see as a whole, on every rank alike.

    Raises:
        UnsupportedError: Names what it is, why, and what to use instead.
    """
    for part, kind in _kinds(runner):
        for name, why in _REFUSED.items():
            if name in kind:
                raise UnsupportedError(
                    f"{type(hook).__name__} cannot work with {part} {kind}: {why}. Use "
                    f"{_INSTEAD.get(name, _DDP)}, or take the hook out of custom_hooks "
                    "(in StabilityHook, set its member to None)."
                )
    if sharded := _cannot_be_sharded_so(runner):
        raise UnsupportedError(
            f"{type(hook).__name__} cannot work with model wrapper "
            f"{type(runner.model).__name__} as it is: {sharded}. It can with "
            f"{_SHARDED}; or take the hook out of custom_hooks (in StabilityHook, set "
            "its member to None)."
        )


def _cannot_be_sharded_so(runner: Any) -> str | None:
    """Why a sharded model is not of the kind that is known; None if it is, or whole."""
    if not is_sharded(runner):
        inside = any(map(is_fsdp, runner.model.modules()))
        return "a part of the model is sharded, and the rest is not" if inside else None
    if getattr(runner, "strategy", None) is None:
        return "Runner neither saves nor resumes a sharded model"
    if not keeps_parameters(runner.model):
        return "without use_orig_params=True its parameters have no names"
    if isinstance(runner.optim_wrapper, OptimWrapperDict):
        return "OptimWrapperDict does not save state of sharded parameters"
    units = filter(is_fsdp, runner.model.modules())
    kinds = sorted({unit.sharding_strategy.name for unit in units})
    others = [how for how in kinds if how not in ("FULL_SHARD", "SHARD_GRAD_OP")]
    if dist.get_world_size() > 1 and others:
        how = others[0]
        return f"sharding_strategy {how!r} has whole copies of parts on several ranks"
    return None


def _kinds(runner: Any) -> Iterator[tuple[str, str]]:
    """What a run consists of, in the config's words, and the classes of it."""
    strategy = getattr(runner, "strategy", None)
    if strategy is not None:
        yield from (("strategy", base.__name__) for base in type(strategy).__mro__)
    yield from (("model wrapper", base.__name__) for base in type(runner.model).__mro__)
    kinds = {type(p).__name__: None for p in runner.model.parameters()}
    yield from (("a parameter", kind) for kind in kinds)
    for _, wrapper in iter_wrappers(runner.optim_wrapper):
        yield "optim_wrapper", type(wrapper).__name__
        optimizer = getattr(wrapper, "optimizer", None)
        yield from (("optimizer", base.__name__) for base in type(optimizer).__mro__)
