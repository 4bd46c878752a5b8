"""Rules on the learning rate and its warm-up."""

from __future__ import annotations

import os.path as osp
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mmengine.config import Config

from ..engine import private
from ..engine.config_values import dig, items_of
from ..engine.finding import Finding, source
from .facts import Facts, WrapperFacts, number, whole_number
from .warmup import (
    USUAL_WARMUP,
    all_known,
    needed_warmup,
    remedy_warmup,
    warmup_iters,
)

# MMDetection's own configs keep within twice the linear-scaling rule.
_TOLERANCE = 2.0
# SGD with momentum, 0.02 for 16 images: the rule of MMDetection's detectors, of which
# none goes beyond 1.5 times this.
_SGD_LR, _SGD_IMAGES = 0.02, 16
# RTMDet's, the highest of its AdamW configs for its batch. Adam's step is scaled by the
# square root of the batch; their other configs (1e-4 for 16) lie below that line, and
# healthy recipes of small detectors (configs/digits) up to 2.9 times above it.
_ADAM_LR, _ADAM_IMAGES, _ADAM_TOLERANCE = 0.004, 256, 3.0
# 8xb32; not 64x4d, which is a backbone.
_NAMED = re.compile(r"(?<![0-9A-Za-z])([0-9]+)x(b?)([0-9]+)(?![0-9A-Za-z])")
_HEADS = ("bbox_head", "rpn_head", "roi_head", "mask_head", "panoptic_head")

_TRIAL = 100  # a shorter run is there to see whether it runs
# A norm that small bounds the first steps as well as a warm-up: DETR and its kin.
_TIGHT_CLIP = 1.0


def high_lr(cfg: Mapping[str, Any], facts: Facts) -> Iterator[Finding]:
    """A learning rate above what scaling gives for the batch size."""
    if len(facts.wrappers) != 1:
        return
    (wrapper,) = facts.wrappers
    if facts.batch_size is None or wrapper.lr is None:
        return
    images = facts.world_size * facts.batch_size * wrapper.accumulate
    reference = _reference(cfg, facts, wrapper)
    lr, scaled = wrapper.lr, bool(dig(cfg, "auto_scale_lr", "enable"))
    if reference is None or (scaled and reference.auto):
        return  # a base that is not meant is a finding of its own
    times = 1.0  # by MMEngine
    if scaled:
        base = whole_number(dig(cfg, "auto_scale_lr", "base_batch_size"))
        if not base:
            return
        times = facts.world_size * facts.batch_size / base
    lr *= times
    right = reference.lr * (images / reference.images) ** reference.power
    if lr <= right * reference.tolerance * (1 + 1e-9):
        return
    # MMEngine scales without regard to accumulation.
    scales = reference.auto and lr == reference.lr and wrapper.accumulate == 1
    by_hand = right / times
    remedy = "Scale it:"
    lines = f"optim_wrapper = dict(optimizer=dict(lr={by_hand:.4g}))"
    if scaled:
        remedy = f"Scale it; auto_scale_lr multiplies it by {times:.4g}:"
    elif scales:
        remedy = "Let MMEngine scale it:"
        lines = f"auto_scale_lr = dict(enable=True, base_batch_size={reference.images})"
    yield Finding(
        "high_lr",
        f"optim_wrapper.optimizer.lr={lr:g}{', as auto_scale_lr has it,' * scaled} for "
        f"{images} images a step ({_product(facts, wrapper)}) is {lr / right:.2g} "
        f"times what {reference.rule} gives: {reference.lr:g} for {reference.images} "
        f"images{reference.of}, so {right:.3g} for {images}.",
        remedy,
        lines,
        remedies=dict(lr=float(f"{by_hand:.4g}")),
    )


def auto_scale_base(cfg: Mapping[str, Any], facts: Facts) -> Iterator[Finding]:
    """A base batch size that was inherited from the config of another optimizer."""
    if not dig(cfg, "auto_scale_lr", "enable") or len(facts.wrappers) != 1:
        return
    (wrapper,) = facts.wrappers
    base = whole_number(dig(cfg, "auto_scale_lr", "base_batch_size"))
    lr = wrapper.lr
    if not base or lr is None or facts.batch_size is None:
        return
    chain = [(facts.path or "", cfg), *_base_configs(facts.path)]
    same = [one for one in chain if _has(one[1], wrapper.optimizer, lr)]
    meant = _meant(*same[-1], wrapper.optimizer, base) if same else None
    if meant is None or meant == base:
        return
    images = facts.world_size * facts.batch_size
    yield Finding(
        "auto_scale_base",
        f"auto_scale_lr.base_batch_size={base} was inherited, and lr={lr:g} of "
        f"{wrapper.optimizer} was chosen for {meant} images, as the name of "
        f"{osp.basename(same[-1][0])} says: for {images} images a step MMEngine makes "
        f"it {lr * images / base:.3g}, where {lr * images / meant:.3g} is meant.",
        "Scale from the batch that it was chosen for:",
        f"auto_scale_lr = dict(base_batch_size={meant})",
    )


def short_warmup(cfg: Mapping[str, Any], facts: Facts) -> Iterator[Finding]:
    """No warm-up of the learning rate, or a short one."""
    if "optim_wrapper" not in cfg or facts.iteration >= USUAL_WARMUP:
        return  # the Runner was not built from a config, or it is over
    if dig(cfg, "lr_config", "warmup"):
        return  # of 2.x, and a finding of its own
    steps = str(dig(cfg, "default_hooks", "param_scheduler", "type"))
    if steps.rsplit(".", 1)[-1] not in ("None", "ParamSchedulerHook"):
        return  # as mmyolo's: it writes learning rates itself, and may warm up
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
    end = USUAL_WARMUP
    if facts.max_iters is not None:
        end = remedy_warmup(facts.max_iters, int(warmup))
    first = dict(type="LinearLR", start_factor=0.001, by_epoch=False, end=end)
    share = " (a tenth)" if end < USUAL_WARMUP else ""
    place = "in place of the present one" if warmup else "first"
    yield Finding(
        "short_warmup",
        f"Warm-up of the learning rate in param_scheduler: {had}; this run should have "
        f"{end}{share}. On fresh weights full steps let logits grow fastest.",
        "Warm up:",
        f"# in param_scheduler, {place}:\n{source(first)},",
        remedies=dict(warmup=end),
    )


@dataclass(frozen=True)
class _Reference:
    """A learning rate and the images a step that it is right for.

    Attributes:
        lr: Learning rate.
        images: In all processes and accumulated iterations.
        auto: From ``auto_scale_lr``.
        power: With which power of the images it grows.
        of: Whose it is.
    """

    lr: float
    images: int
    auto: bool
    power: float = 1.0
    of: str = ""

    @property
    def tolerance(self) -> float:
        """By what a learning rate may be above it."""
        return _TOLERANCE if self.power == 1 else _ADAM_TOLERANCE

    @property
    def rule(self) -> str:
        """What it is scaled by."""
        return "linear scaling" if self.power == 1 else "scaling by the square root"


def named_batch(name: str, batch_size: int | None = None) -> tuple[int, int] | None:
    """GPUs and images on each, as ``8xb32`` in a file's name tells.

    Args:
        name: Of the file.
        batch_size: What ``8x32`` without the b must have as its second number.
    """
    for gpus, b, images in _NAMED.findall(name):
        if b or (batch_size is not None and int(images) == batch_size):
            return int(gpus), int(images)
    return None


def _reference(
    cfg: Mapping[str, Any], facts: Facts, wrapper: WrapperFacts
) -> _Reference | None:
    """What scaling starts from, if that is known.

    ``base_batch_size`` belongs to the learning rate that stood beside it, in a config
    that this one inherits: a user who has scaled ``lr`` by hand leaves it as it is.
    """
    if base := whole_number(dig(cfg, "auto_scale_lr", "base_batch_size")):
        known = list(_inherited(facts.path, wrapper.optimizer, base))
        if known:
            return max(known, key=lambda r: r.lr / r.images)
    heads = {key for part in _models(cfg) for key in part}
    momentum = number(dig(cfg, "optim_wrapper", "optimizer", "momentum")) or 0
    if wrapper.optimizer == "SGD" and momentum >= 0.9 and heads.intersection(_HEADS):
        of = ", MMDetection's rule for SGD"
        return _Reference(_SGD_LR, _SGD_IMAGES, auto=False, of=of)
    if wrapper.optimizer in ("Adam", "AdamW") and heads.intersection(_HEADS):
        of = f", the most that MMDetection's configs have for {wrapper.optimizer}"
        return _Reference(_ADAM_LR, _ADAM_IMAGES, auto=False, power=0.5, of=of)
    return None


def _inherited(path: str | None, optimizer: str, base: int) -> Iterator[_Reference]:
    """What the base configs have for the same optimizer and base batch size."""
    for file, parent in _base_configs(path):
        lr = number(dig(parent, "optim_wrapper", "optimizer", "lr"))
        same_base = dig(parent, "auto_scale_lr", "base_batch_size") == base
        if lr and same_base and _has(parent, optimizer, lr):
            images = _meant(file, parent, optimizer, base) or base
            yield _Reference(lr, images, auto=True)


def _has(cfg: Mapping[str, Any], optimizer: str, lr: float) -> bool:
    kind = str(dig(cfg, "optim_wrapper", "optimizer", "type")).rsplit(".", 1)[-1]
    return kind == optimizer and dig(cfg, "optim_wrapper", "optimizer", "lr") == lr


def _meant(path: str, cfg: Mapping[str, Any], optimizer: str, base: int) -> int | None:
    """The images a step that a config's learning rate was chosen for.

    None if its base batch size is right, as far as it is known: only one that it
    inherits together with another learning rate is not its own, as RTMDet's.
    """
    lr = number(dig(cfg, "optim_wrapper", "optimizer", "lr"))
    size = whole_number(dig(cfg, "train_dataloader", "batch_size"))
    named = named_batch(osp.basename(path), size)
    if lr is None or named is None or named[1] != size:
        return None
    foreign = any(
        dig(parent, "auto_scale_lr", "base_batch_size") == base
        and dig(parent, "optim_wrapper", "optimizer", "lr") is not None
        and not _has(parent, optimizer, lr)
        for _, parent in _base_configs(path)
    )
    return named[0] * named[1] if foreign else None


def _base_configs(path: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """The configs that a file inherits with their paths, each merged with its bases."""
    if not path or not osp.isfile(path):
        return
    try:
        for base in private.base_configs(Config, path):
            yield base, Config.fromfile(base).to_dict()
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
