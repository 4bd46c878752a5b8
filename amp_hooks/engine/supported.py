"""What takes weights, gradients or optimizer state out of our reach."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmengine.runner import Runner

from ..errors import UnsupportedError
from .run import iter_wrappers

# Parts of class names, why, and what to use instead. No class is imported for it:
# most of them are of packages that are not there.
_REFUSED = {
    "FullyShardedDataParallel": "each rank has a part of the model only",
    "FSDPStrategy": "each rank has a part of the model only",
    "DeepSpeed": "its engine keeps gradients and optimizer to itself",
    "ColossalAI": "its booster keeps gradients and optimizer to itself",
    "ZeroRedundancyOptimizer": "each rank has a part of the optimizer's state only",
    "ApexOptimWrapper": "it keeps gradients and loss scale to itself",
}
_INSTEAD = {
    "ZeroRedundancyOptimizer": "the optimizer that it wraps "
    "(optimizer=dict(type='AdamW', ...))",
    "ApexOptimWrapper": "AmpOptimWrapper",
}
_DDP = (
    "MMDistributedDataParallel (with FlexibleRunner strategy=dict(type='DDPStrategy'))"
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


def _kinds(runner: Any) -> Iterator[tuple[str, str]]:
    """What a run consists of, in the config's words, and the classes of it."""
    strategy = getattr(runner, "strategy", None)
    if strategy is not None:
        yield from (("strategy", base.__name__) for base in type(strategy).__mro__)
    yield from (("model wrapper", base.__name__) for base in type(runner.model).__mro__)
    for _, wrapper in iter_wrappers(runner.optim_wrapper):
        yield "optim_wrapper", type(wrapper).__name__
        optimizer = getattr(wrapper, "optimizer", None)
        yield from (("optimizer", base.__name__) for base in type(optimizer).__mro__)
