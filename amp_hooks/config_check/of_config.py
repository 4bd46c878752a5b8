"""Facts of a run that is not built, from its config alone."""

from __future__ import annotations

import os.path as osp
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from mmengine.config import Config
from mmengine.optim import AmpOptimWrapper
from mmengine.registry import DATASETS, HOOKS, OPTIM_WRAPPERS, Registry
from mmengine.runner.priority import get_priority

from ..engine.config_values import dig, items_of
from ..members import MEMBERS
from .classes import number_of_classes
from .facts import MIXED, Facts, HookFacts, WrapperFacts, number, whole_number
from .learning_rate import named_batch

# Methods of a data set that may change its classes.
_SETS_CLASSES = {"__init__", "load_data_list", "full_init", "metainfo"}
# Of Runner.register_default_hooks, in its order.
_DEFAULT_HOOKS = {
    "runtime_info": "RuntimeInfoHook",
    "timer": "IterTimerHook",
    "sampler_seed": "DistSamplerSeedHook",
    "logger": "LoggerHook",
    "param_scheduler": "ParamSchedulerHook",
    "checkpoint": "CheckpointHook",
}


def facts_of_config(
    config: Config,
    world_size: int = 1,
    resume: bool = False,
    saved_ema: bool | None = None,
) -> Facts:
    """What a config tells of a run; neither model nor data set is built.

    Args:
        config: As for ``Runner.from_cfg``.
        world_size: Processes that are going to train.
        resume: The run will go on from a checkpoint.
        saved_ema: That checkpoint was written with an EMAHook; None if not known.
    """
    cfg = config.to_dict()
    loader = cfg.get("train_dataloader")
    size = dig(loader, "batch_size") or dig(loader, "batch_sampler", "batch_size")
    return Facts(
        world_size=world_size,
        batch_size=whole_number(size),
        max_iters=whole_number(dig(cfg, "train_cfg", "max_iters")),
        resume=resume,
        saved_ema=saved_ema,
        wrappers=tuple(_wrappers(cfg.get("optim_wrapper"))),
        # Stable, as Runner.register_hook is.
        hooks=tuple(sorted(_hooks(cfg), key=lambda hook: hook.priority)),
        path=config.filename,
        classes=number_of_classes(
            dig(loader, "dataset"), partial(_classes_of, cfg.get("default_scope"))
        ),
    )


def gpus_of_name(config: Config) -> int | None:
    """The GPUs that a file's name tells, as ``8xb32`` does: 8 of 32 images each.

    Without the b it may be anything, the size of images for one, unless the second
    number is the batch size.
    """
    name = osp.basename(config.filename or "")
    loader = config.to_dict().get("train_dataloader")
    size = whole_number(dig(loader, "batch_size"))
    found = named_batch(name, size)
    return None if found is None else found[0]


def _wrappers(tree: Any) -> Iterator[WrapperFacts]:
    if not isinstance(tree, Mapping):
        return
    if "optimizer" in tree:
        yield _wrapper("", tree)
        return
    for name, part in tree.items():
        if isinstance(part, Mapping) and "optimizer" in part:
            yield _wrapper(str(name), part)


def _wrapper(name: str, part: Mapping[str, Any]) -> WrapperFacts:
    kind = str(part.get("type", "OptimWrapper")).rsplit(".", 1)[-1]
    cls = _class_of(OPTIM_WRAPPERS, part.get("type"))
    mixed = issubclass(cls, AmpOptimWrapper) if cls else kind == "AmpOptimWrapper"
    dtype = str(part.get("dtype") or "float16").rsplit(".", 1)[-1] if mixed else ""
    scale = part.get("loss_scale", "dynamic")
    clip = part.get("clip_grad")
    return WrapperFacts(
        name=name,
        kind=kind,
        dtype=dtype if dtype in MIXED else "",
        static_scale=number(scale) if mixed else None,
        clips=bool(clip),
        max_norm=number(dig(clip, "max_norm")),
        clip_raises=bool(dig(clip, "error_if_nonfinite")),
        accumulate=whole_number(part.get("accumulative_counts")) or 1,
        optimizer=str(dig(part, "optimizer", "type")).rsplit(".", 1)[-1],
        lr=number(dig(part, "optimizer", "lr")),
    )


def _hooks(cfg: Mapping[str, Any]) -> Iterator[HookFacts]:
    defaults: dict[str, Any] = {n: dict(type=t) for n, t in _DEFAULT_HOOKS.items()}
    given = cfg.get("default_hooks")
    defaults.update(given if isinstance(given, Mapping) else {})
    for hook in [*defaults.values(), *items_of(cfg.get("custom_hooks"))]:
        if isinstance(hook, Mapping) and "type" in hook:
            yield from _hook(hook)


def _hook(hook: Mapping[str, Any]) -> Iterator[HookFacts]:
    arguments = dict(hook)
    kind = arguments.pop("type")
    cls = _class_of(HOOKS, kind)
    priority = arguments.pop("priority", None)
    if priority is None:  # as Runner.register_hook takes it
        priority = getattr(cls, "priority", "NORMAL")
    mro = cls.__mro__ if cls else ()
    names = {str(kind).rsplit(".", 1)[-1], *(c.__name__ for c in mro)}
    try:
        place = get_priority(priority)
    except (KeyError, TypeError, ValueError):  # which the runner refuses by itself
        place = get_priority("NORMAL")
    yield HookFacts(frozenset(names), place, arguments)
    if "StabilityHook" not in names:
        return
    for argument, member in MEMBERS.items():
        value = arguments.get(argument, True)
        for given in value if isinstance(value, list) else [value]:
            if given is not None and given is not False:
                kind = _class_of(HOOKS, f"amp_hooks.{member}")
                yield HookFacts(
                    frozenset(c.__name__ for c in (kind.__mro__ if kind else ())),
                    get_priority(getattr(kind, "priority", "NORMAL")),
                    given if isinstance(given, dict) else {},
                )


def _classes_of(scope: Any, kind: Any) -> int | None:
    """How many a data set has where its config names none.

    None of one that may set them by itself, as it reads its annotations.
    """
    scoped = f"{scope}.{kind}" if scope and isinstance(kind, str) else kind
    cls = _class_of(DATASETS, scoped) or _class_of(DATASETS, kind)
    for one in cls.__mro__ if cls else ():
        if "METAINFO" in vars(one):
            known = dig(vars(one)["METAINFO"], "classes")
            return len(known) if isinstance(known, (list, tuple)) else None
        if _SETS_CLASSES.intersection(vars(one)):
            return None
    return None


def _class_of(registry: Registry, kind: Any) -> type | None:
    """The class a config names; None for one that is not registered here."""
    if isinstance(kind, type):
        return kind
    try:
        found = registry.get(str(kind))
    except (Exception, SystemExit):  # a name is imported, which may end in anything
        return None
    return found if isinstance(found, type) else None
