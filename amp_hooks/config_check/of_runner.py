"""Facts of a run that is about to train."""

from __future__ import annotations

from typing import Any

from mmengine.optim import OptimWrapper
from mmengine.runner import Runner, find_latest_checkpoint
from mmengine.runner.priority import get_priority

from ..engine import private
from ..engine.config_values import dig
from ..engine.describe import batch_size
from ..engine.hook import AmpHook
from ..engine.of_others import attribute, has
from ..engine.run import active_scaler, iter_wrappers
from ..rollback.checkpoint_file import read_header
from .facts import MIXED, Facts, HookFacts, WrapperFacts, number


def facts_of_runner(runner: Runner) -> Facts:
    """What a runner knows of itself in ``before_train``."""
    loader = runner.train_dataloader
    resumed = private.is_resumed(runner)
    return Facts(
        world_size=runner.world_size,
        batch_size=batch_size(loader),
        epoch_length=_length(loader),
        max_iters=runner.max_iters,
        iteration=runner.iter,
        resume=resumed,
        saved_ema=_saved_ema(runner) if resumed else None,
        wrappers=tuple(
            _wrapper(name, wrapper)
            for name, wrapper in iter_wrappers(runner.optim_wrapper)
        ),
        hooks=tuple(
            HookFacts(
                frozenset(cls.__name__ for cls in type(hook).__mro__),
                get_priority(hook.priority),
                hook.arguments if isinstance(hook, AmpHook) else {},
            )
            for hook in runner.hooks
        ),
        path=runner.cfg.filename,
        classes=_classes(loader),
    )


def _wrapper(name: str, wrapper: OptimWrapper) -> WrapperFacts:
    scaler = active_scaler(wrapper)
    half = scaler is not None or has(wrapper, "cast_dtype")
    # Without a cast_dtype it is autocast's own, on a GPU.
    dtype = str(attribute(wrapper, "cast_dtype") or "float16")
    dtype = dtype.rsplit(".", 1)[-1]
    clip = wrapper.clip_grad_kwargs
    return WrapperFacts(
        name=name,
        kind=type(wrapper).__name__,
        dtype=dtype if half and dtype in MIXED else "",
        static_scale=private.static_scale(wrapper),
        clips=bool(clip),
        max_norm=number(dig(clip, "max_norm")),
        clip_raises=bool(dig(clip, "error_if_nonfinite")),
        accumulate=private.accumulative_counts(wrapper),
        optimizer=type(wrapper.optimizer).__name__,
        lr=number(wrapper.optimizer.defaults.get("lr")),
    )


def _length(loader: Any) -> int | None:
    try:
        return len(loader)
    except TypeError:  # of an iterable data set
        return None


def _classes(loader: Any) -> int | None:
    known = dig(getattr(loader.dataset, "metainfo", None), "classes")
    return len(known) if isinstance(known, (list, tuple)) else None


def _saved_ema(runner: Runner) -> bool | None:
    path = private.load_from(runner) or find_latest_checkpoint(runner.work_dir)
    header = read_header(str(path)) if path else None
    return None if header is None else header.ema
