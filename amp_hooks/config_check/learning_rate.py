"""Rules on the learning rate and its warm-up."""

from __future__ import annotations

import os.path as osp
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mmengine.config import Config

from ..engine import private
from ..engine.config_values import dig, items_of
from ..engine.finding import Finding, source
from .facts import Facts, WrapperFacts, number, whole_number
from .warmup import USUAL_WARMUP, all_known, needed_warmup, warmup_iters

# MMDetection's own configs keep within twice the linear-scaling rule.
_TOLERANCE = 2.0
# SGD with momentum, 0.02 for 16 images: the rule of MMDetection's detectors, of which
# none goes beyond 1.5 times this.
_SGD_LR, _SGD_IMAGES = 0.02, 16
_HEADS = ("bbox_head", "rpn_head", "roi_head", "mask_head")

_TRIAL = 100  # a shorter run is there to see whether it runs
# A norm that small bounds the first steps as well as a warm-up: DETR and its kin.
_TIGHT_CLIP = 1.0


def high_lr(cfg: Mapping[str, Any], facts: Facts) -> Iterator[Finding]:
    """A learning rate above what linear scaling gives for the batch size."""
    if dig(cfg, "auto_scale_lr", "enable") or len(facts.wrappers) != 1:
        return
    (wrapper,) = facts.wrappers
    if facts.batch_size is None or wrapper.lr is None:
        return
    images = facts.world_size * facts.batch_size * wrapper.accumulate
    reference = _reference(cfg, facts, wrapper)
    if reference is None:
        return
    right = reference.lr * images / reference.images
    if wrapper.lr <= right * _TOLERANCE * (1 + 1e-9):
        return
    # MMEngine scales without regard to accumulation.
    scales = reference.auto and wrapper.lr == reference.lr and wrapper.accumulate == 1
    lines = f"auto_scale_lr = dict(enable=True, base_batch_size={reference.images})"
    if not scales:
        lines = f"optim_wrapper = dict(optimizer=dict(lr={right:.4g}))"
    rule = "" if reference.auto else ", MMDetection's rule for SGD"
    yield Finding(
        "high_lr",
        f"optim_wrapper.optimizer.lr={wrapper.lr:g} for {images} images a step "
        f"({_product(facts, wrapper)}) is {wrapper.lr / right:.2g} times what linear "
        f"scaling gives: {reference.lr:g} for {reference.images} images{rule}, so "
        f"{right:.3g} for {images}.",
        "Let MMEngine scale it:" if scales else "Scale it:",
        lines,
    )


def short_warmup(cfg: Mapping[str, Any], facts: Facts) -> Iterator[Finding]:
    """No warm-up of the learning rate, or a short one."""
    if "optim_wrapper" not in cfg or facts.iteration >= USUAL_WARMUP:
        return  # the Runner was not built from a config, or it is over
    if dig(cfg, "lr_config", "warmup"):
        return  # of 2.x, and a finding of its own
    if all(_tightly_clipped(wrapper) for wrapper in facts.wrappers):
        return
    schedules = _schedules(cfg.get("param_scheduler"))
    if not all(all_known(schedule) for schedule in schedules):
        return
    warmup = min(warmup_iters(s, facts.epoch_length) for s in schedules)
    enough = USUAL_WARMUP
    if facts.max_iters is not None:
        if facts.max_iters < _TRIAL:
            return
        enough = needed_warmup(facts.max_iters)
    elif warmup:
        return  # a short run may do with it
    if warmup >= enough:
        return
    had = f"{warmup:g} iterations" if warmup else "none"
    first = dict(type="LinearLR", start_factor=0.001, by_epoch=False, end=enough)
    share = " (a twentieth)" if enough < USUAL_WARMUP else ""
    place = "in place of the present one" if warmup else "first"
    yield Finding(
        "short_warmup",
        f"Warm-up of the learning rate in param_scheduler: {had}; this run should have "
        f"{enough}{share}. On fresh weights full steps let logits grow fastest.",
        "Warm up:",
        f"# in param_scheduler, {place}:\n{source(first)},",
    )


@dataclass(frozen=True)
class _Reference:
    """A learning rate and the images a step that it is right for.

    Attributes:
        lr: Learning rate.
        images: In all processes and accumulated iterations.
        auto: From ``auto_scale_lr``.
    """

    lr: float
    images: int
    auto: bool


def _reference(
    cfg: Mapping[str, Any], facts: Facts, wrapper: WrapperFacts
) -> _Reference | None:
    """What linear scaling starts from, if that is known.

    ``base_batch_size`` belongs to the learning rate that stood beside it, in a config
    that this one inherits: a user who has scaled ``lr`` by hand leaves it as it is.
    """
    if base := whole_number(dig(cfg, "auto_scale_lr", "base_batch_size")):
        known = list(_inherited(facts.path, wrapper.optimizer, base))
        if known:
            return _Reference(max(known), base, auto=True)
    heads = {key for part in _models(cfg) for key in part}
    momentum = number(dig(cfg, "optim_wrapper", "optimizer", "momentum")) or 0
    if wrapper.optimizer == "SGD" and momentum >= 0.9 and heads.intersection(_HEADS):
        return _Reference(_SGD_LR, _SGD_IMAGES, auto=False)
    return None


def _inherited(path: str | None, optimizer: str, base: int) -> Iterator[float]:
    """Learning rates that the base configs have for the same optimizer and batch."""
    for parent in _base_configs(path):
        lr = dig(parent, "optim_wrapper", "optimizer", "lr")
        kind = str(dig(parent, "optim_wrapper", "optimizer", "type"))
        same = kind.rsplit(".", 1)[-1] == optimizer
        if same and dig(parent, "auto_scale_lr", "base_batch_size") == base and lr:
            yield float(lr)


def _base_configs(path: str | None) -> Iterator[dict[str, Any]]:
    """The configs that a file inherits, each merged with its own bases."""
    if not path or not osp.isfile(path):
        return
    try:
        for base in private.base_configs(Config, path):
            yield Config.fromfile(base).to_dict()
            yield from _base_configs(base)
    except Exception:  # a file that has gone or changed since; then nothing is known
        return


def _models(cfg: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for path in (("model",), ("model", "detector")):
        if isinstance(part := dig(cfg, *path), Mapping):
            yield part


def _schedules(tree: Any) -> list[list[dict[str, Any]]]:
    """One list of schedulers for each optimizer."""
    if isinstance(tree, Mapping) and "type" not in tree:
        return [items_of(part) for part in tree.values()] or [[]]
    return [items_of(tree)]


def _tightly_clipped(wrapper: WrapperFacts) -> bool:
    return wrapper.max_norm is not None and wrapper.max_norm <= _TIGHT_CLIP


def _product(facts: Facts, wrapper: WrapperFacts) -> str:
    text = f"{facts.world_size} process{'es' if facts.world_size > 1 else ''} x "
    text += f"{facts.batch_size}"
    return text + (f" x {wrapper.accumulate}" if wrapper.accumulate > 1 else "")
