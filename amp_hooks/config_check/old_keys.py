"""Settings of MMDetection 2.x, which 3.x reads without a word and ignores."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Callable, Mapping

from ..engine.config_values import dig
from ..engine.finding import Finding, short_source, source
from .facts import Facts, whole_number

# Schedules of 2.x that take the whole run, and their names in 3.x.
_TO_THE_END = {"cosineannealing": "CosineAnnealingLR", "poly": "PolyLR"}
# The 3.x lines in the place of a 2.x value; None if nothing is lost without them.
Rewrite = Callable[[Mapping[str, Any], Any], "str | None"]


def ignored_keys(cfg: Mapping[str, Any], facts: Facts) -> Iterator[Finding]:
    """A finding for each key of 2.x that changes nothing although it looks as if."""
    for key in _REWRITES:
        yield from ignored_key(cfg, key)


def ignored_key(cfg: Mapping[str, Any], key: str) -> Iterator[Finding]:
    """The finding on one key of 2.x, or none."""
    value = cfg.get(key)
    if not value or not isinstance(value, _KINDS.get(key, Mapping)):
        return  # a variable of the user's own that has the name by chance
    instead, rewrite = _REWRITES[key]
    lines = rewrite(cfg, value)
    if lines is None:
        return
    issues = " (mmdetection#10865, #11433)" if key == "fp16" else ""
    yield Finding(
        f"ignored_{key}",
        f"The config has {key}={short_source(value)}, which MMDetection 3.x "
        f"ignores{issues}.",
        f"Delete it; 3.x reads {instead}" + (":" if lines else "."),
        lines,
    )


def _fp16(cfg: Mapping[str, Any], value: Any) -> str | None:
    if "Amp" in str(dig(cfg, "optim_wrapper", "type")):
        return ""  # the user has moved on, and may think that both count
    arguments = dict(value) if isinstance(value, Mapping) else {}
    scale = arguments.pop("loss_scale", arguments)
    if isinstance(scale, Mapping):
        kept = ("init_scale", "growth_factor", "backoff_factor", "growth_interval")
        scale = {name: scale[name] for name in kept if name in scale} or "dynamic"
    elif isinstance(scale, (int, float)):
        # A static one is never lowered; this begins there.
        scale = dict(init_scale=float(scale))
    wrapper = dict(type="AmpOptimWrapper", loss_scale=scale)
    return f"optim_wrapper = {source(wrapper)}"


def _optimizer_config(cfg: Mapping[str, Any], value: Any) -> str | None:
    new: dict[str, Any] = {}
    if clip := dig(value, "grad_clip"):
        new["clip_grad"] = {k: v for k, v in clip.items() if k != "_delete_"}
    if (count := dig(value, "cumulative_iters")) not in (None, 1):
        new["accumulative_counts"] = count
    if "Fp16" in str(dig(value, "type")):
        new = dict(type="AmpOptimWrapper", loss_scale="dynamic", **new)
    return _unless_there(cfg, "optim_wrapper", new)


def _optimizer(cfg: Mapping[str, Any], value: Any) -> str | None:
    optimizer = dict(value)
    groups = {k: optimizer.pop(k) for k in ("paramwise_cfg",) if k in optimizer}
    if _holds(dig(cfg, "optim_wrapper"), dict(optimizer=optimizer, **groups)):
        return None
    # Arguments of the inherited one would stay, and another class refuses them.
    optimizer = _in_place_of(dig(cfg, "optim_wrapper", "optimizer"), optimizer)
    return f"optim_wrapper = {source(dict(optimizer=optimizer, **groups))}"


def _in_place_of(present: Any, new: dict[str, Any]) -> dict[str, Any]:
    kind = str(dig(present, "type")).rsplit(".", 1)[-1]
    if "type" not in new or not present or kind == new["type"]:
        return new
    return dict(_delete_=True, **new)


def _length(cfg: Mapping[str, Any], by_epoch: bool) -> int | None:
    """Epochs of the run, or its iterations, if the config tells."""
    key = "max_epochs" if by_epoch else "max_iters"
    given = [dig(cfg, "runner", key), dig(cfg, "train_cfg", key)]
    if by_epoch:
        given.insert(1, cfg.get("total_epochs"))
    return next((n for n in map(whole_number, given) if n), None)


def _lr_config(cfg: Mapping[str, Any], value: Any) -> str | None:
    length = _length(cfg, bool(value.get("by_epoch", True)))
    policy = str(value.get("policy", "")).lower()
    if policy in _TO_THE_END and length is None:
        # Without an end it would never get down, and the config does not tell it.
        return f"# in param_scheduler: {_TO_THE_END[policy]}, its end that of the run"
    schedulers = [*_old_warmup(value), *_old_policy(value, length)]
    if not schedulers:
        return None if value.get("policy") == "fixed" else ""
    inner = "".join(f"    {source(scheduler)},\n" for scheduler in schedulers)
    return f"param_scheduler = [\n{inner}]"


def _old_warmup(value: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    if not value.get("warmup"):
        return
    ratio, end = value.get("warmup_ratio", 0.1), value.get("warmup_iters", 0)
    by_epoch = bool(value.get("warmup_by_epoch", False))
    span = dict(by_epoch=by_epoch, begin=0, end=end)
    if value["warmup"] == "constant":
        yield dict(type="ConstantLR", factor=ratio, **span)
    else:
        yield dict(type="LinearLR", start_factor=ratio, **span)


def _old_policy(
    value: Mapping[str, Any], length: int | None
) -> Iterator[dict[str, Any]]:
    policy = str(value.get("policy", "")).lower()
    by_epoch = bool(value.get("by_epoch", True))
    gamma = value.get("gamma", 0.1)
    span = dict(by_epoch=by_epoch, begin=0, end=length)
    if policy == "step" and isinstance(value.get("step"), (list, tuple)):
        steps = list(value["step"])
        yield dict(type="MultiStepLR", by_epoch=by_epoch, milestones=steps, gamma=gamma)
    elif policy == "step" and value.get("step"):
        step = value["step"]
        yield dict(type="StepLR", by_epoch=by_epoch, step_size=step, gamma=gamma)
    elif policy == "cosineannealing":
        low = {"eta_min": value.get("min_lr", 0)}
        if "min_lr_ratio" in value:
            low = {"eta_min_ratio": value["min_lr_ratio"]}
        yield dict(type="CosineAnnealingLR", **span, **low)
    elif policy == "poly":
        power, low_lr = value.get("power", 1.0), value.get("min_lr", 0.0)
        yield dict(type="PolyLR", **span, power=power, eta_min=low_lr)


def _runner(cfg: Mapping[str, Any], value: Any) -> str | None:
    for key, kind in (("max_epochs", "Epoch"), ("max_iters", "Iter")):
        if (length := dig(value, key)) is not None:
            loop = dict(type=f"{kind}BasedTrainLoop", **{key: length})
            return _train_cfg(cfg, loop)
    return ""


def _total_epochs(cfg: Mapping[str, Any], value: Any) -> str | None:
    loop = dict(type="EpochBasedTrainLoop", max_epochs=value)
    return _train_cfg(cfg, loop)


def _train_cfg(cfg: Mapping[str, Any], loop: dict[str, Any]) -> str | None:
    present = cfg.get("train_cfg")
    if _holds(present, loop):
        return None
    return f"train_cfg = {source(_in_place_of(present, loop))}"


def _evaluation(cfg: Mapping[str, Any], value: Any) -> str | None:
    lines = []
    if (interval := dig(value, "interval")) is not None:
        lines.append(_unless_there(cfg, "train_cfg", dict(val_interval=interval)))
    metric, present = dig(value, "metric"), cfg.get("val_evaluator")
    nothing: str | None = None
    if metric is not None and isinstance(present, (list, tuple)):
        # Which of several it belongs to is not known.
        if not any(_holds(each, dict(metric=metric)) for each in present):
            nothing = ""
    elif metric is not None:
        lines.append(_unless_there(cfg, "val_evaluator", dict(metric=metric)))
    if best := dig(value, "save_best"):
        hook = dict(checkpoint=dict(save_best=best))
        lines.append(_unless_there(cfg, "default_hooks", hook))
    return "\n".join(line for line in lines if line) or nothing


def _checkpoint_config(cfg: Mapping[str, Any], value: Any) -> str | None:
    return _unless_there(cfg, "default_hooks", dict(checkpoint=value))


def _log_config(cfg: Mapping[str, Any], value: Any) -> str | None:
    lines = []
    if (interval := dig(value, "interval")) is not None:
        hook = dict(logger=dict(interval=interval))
        lines.append(_unless_there(cfg, "default_hooks", hook))
    if "TensorboardLoggerHook" in str(dig(value, "hooks")):
        backends = [dict(type=f"{name}VisBackend") for name in ("Local", "Tensorboard")]
        if "Tensorboard" not in str(dig(cfg, "visualizer", "vis_backends")):
            lines.append(f"visualizer = {source(dict(vis_backends=backends))}")
    return "\n".join(line for line in lines if line) or None


def _data(cfg: Mapping[str, Any], value: Any) -> str | None:
    new = dict(
        batch_size=dig(value, "samples_per_gpu"),
        num_workers=dig(value, "workers_per_gpu"),
    )
    new = {name: number for name, number in new.items() if number is not None}
    if not new and not any(part in value for part in ("train", "val", "test")):
        return None
    if "train" in value:
        lines = _unless_there(cfg, "train_dataloader", dict(new, dataset={})) or ""
        return lines.replace("dataset=dict()", "dataset=dict(...)")
    return _unless_there(cfg, "train_dataloader", new)


def _workflow(cfg: Mapping[str, Any], value: Any) -> str | None:
    # With training alone in it, 3.x does what it says.
    return "" if any("val" in str(part) for part in value) else None


def _resume_from(cfg: Mapping[str, Any], value: Any) -> str | None:
    if cfg.get("resume") and cfg.get("load_from") == value:
        return None
    return f"resume = True\nload_from = {value!r}"


def _auto_resume(cfg: Mapping[str, Any], value: Any) -> str | None:
    return None if cfg.get("resume") else "resume = True"


def _unless_there(cfg: Mapping[str, Any], key: str, new: dict[str, Any]) -> str | None:
    """The line that sets this; None if there is nothing to set, or it is set."""
    return f"{key} = {source(new)}" if not _holds(cfg.get(key), new) else None


def _holds(present: Any, wanted: Any) -> bool:
    if isinstance(wanted, Mapping) and isinstance(present, Mapping):
        return all(
            key in present and _holds(present[key], value)
            for key, value in wanted.items()
        )
    return not wanted or bool(present == wanted)


# What a value of 2.x is, where it is not a dict.
_KINDS: dict[str, Any] = {
    "fp16": object,
    "total_epochs": int,
    "workflow": (list, tuple),
    "resume_from": str,
    "auto_resume": bool,
}
_DATA = "train_dataloader, val_dataloader and test_dataloader"
# What 3.x reads instead, and the lines for it.
_REWRITES: dict[str, tuple[str, Rewrite]] = {
    "fp16": ("optim_wrapper", _fp16),
    "optimizer_config": ("optim_wrapper", _optimizer_config),
    "optimizer": ("optim_wrapper.optimizer", _optimizer),
    "lr_config": ("param_scheduler", _lr_config),
    "runner": ("train_cfg", _runner),
    "total_epochs": ("train_cfg.max_epochs", _total_epochs),
    "evaluation": ("train_cfg.val_interval and val_evaluator", _evaluation),
    "checkpoint_config": ("default_hooks.checkpoint", _checkpoint_config),
    "log_config": ("default_hooks.logger and visualizer", _log_config),
    "data": (_DATA, _data),
    "workflow": ("train_cfg.val_interval, and has no validation loss", _workflow),
    "resume_from": ("resume and load_from", _resume_from),
    "auto_resume": ("resume", _auto_resume),
}
