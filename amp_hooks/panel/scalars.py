"""The scalars the suite publishes: their names, meaning and worst value."""

from __future__ import annotations

import math
import posixpath
import re
import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Callable, Iterable

from ..engine.headroom import FP16_MAX, headroom_bits
from ..engine.recorder import IterationRecord

Reduce = Callable[[Iterable[float]], float]

# log2 of the smallest float32 above 0: what a scale of exactly 0.0 is drawn as.
SCALE_LOG2_MIN = -149.0

# MLflow is the strictest about names.
_ILLEGAL = re.compile(r"[^\w.\- /]", re.ASCII)
_LONGEST = 200


@dataclass(frozen=True)
class Scalar:
    """One published scalar.

    Attributes:
        worst: Merges values since the last publication so that no spike is lost.
        unit: What it is measured in.
        meaning: One line for the table of docs/en/scalars.md.
    """

    worst: Callable[[float, float], float]
    unit: str
    meaning: str


# Quantities of several optimizers of which only the worst is published.
_WORST_ONLY: dict[str, Reduce] = {
    "growth_tracker": min,
    "skipped_streak": max,
    "skipped_share": max,
    "adaptive_clip": min,
}


# One value each, which hooks add to the record.
_COUNTS_AND_FLAGS = {
    quantity: f"amp/{quantity}"
    for quantity in (
        "nonfinite_total",
        "vetoes_total",
        "nan_terms_total",
        "loss_now",
        "loss_low",
        "loss_high",
        "loss_level",
        "health",
        "clamp_active",
        "fallback_active",
        "rollbacks_total",
        "lr_factor",
    )
}

# Of the loss: where it is in its healthy range.
_BAND = {
    "loss_now": "amp/loss_now_log2",
    "loss_low": "amp/loss_low_log2",
    "loss_high": "amp/loss_high_log2",
}


def _latest(old: float, new: float) -> float:
    return new


SCALARS = {
    "amp/scale_log2": Scalar(min, "log2", "loss scale used by the step"),
    "amp/scale_log2/<optimizer>": Scalar(
        min, "log2", "the same, of one optimizer of an OptimWrapperDict"
    ),
    "amp/growth_tracker": Scalar(
        min,
        "steps",
        "clean steps since the loss scale changed; at growth_interval it grows",
    ),
    "amp/skipped_total": Scalar(_latest, "steps", "optimizer steps skipped so far"),
    "amp/skipped_total/<optimizer>": Scalar(
        _latest, "steps", "the same, of one optimizer of an OptimWrapperDict"
    ),
    "amp/skipped_streak": Scalar(max, "steps", "steps skipped in a row"),
    "amp/skipped_share": Scalar(max, "0 to 1", "skipped share of the last 1000 steps"),
    "amp/vetoes_total": Scalar(
        _latest, "iterations", "iterations undone by StepGuardHook so far"
    ),
    "amp/nonfinite": Scalar(max, "0 or 1", "an iteration had NaN or inf somewhere"),
    "amp/nonfinite_total": Scalar(
        _latest, "iterations", "iterations with NaN or inf so far"
    ),
    "amp/nan_terms_total": Scalar(
        _latest,
        "iterations",
        "iterations with a loss that was not finite and did no harm so far",
    ),
    "amp/loss": Scalar(max, "loss", "the loss that was propagated"),
    "amp/loss_now": Scalar(
        max, "loss", "the median of the last five, once their level is known"
    ),
    "amp/loss_low": Scalar(_latest, "loss", "lower edge of its healthy range"),
    "amp/loss_high": Scalar(_latest, "loss", "upper edge of its healthy range"),
    "amp/loss_now_log2": Scalar(max, "log2", "log2 of loss_now"),
    "amp/loss_low_log2": Scalar(_latest, "log2", "log2 of loss_low"),
    "amp/loss_high_log2": Scalar(_latest, "log2", "log2 of loss_high"),
    "amp/loss_level": Scalar(max, "ratio", "loss over its healthy level"),
    "amp/health": Scalar(max, "0, 1, 2", "the run is healthy, watched or ill"),
    "amp/gradnorm": Scalar(max, "L2 norm", "unscaled gradient norm before clipping"),
    "amp/gradnorm/<group>": Scalar(max, "L2 norm", "the same, of one parameter group"),
    "amp/clip_max_norm": Scalar(
        min, "L2 norm", "the gradient norm above which `clip_grad` scales down"
    ),
    "amp/clip_max_norm/<optimizer>": Scalar(
        min, "L2 norm", "the same, of one optimizer of an OptimWrapperDict"
    ),
    "amp/adaptive_clip": Scalar(
        min, "factor", "what the adaptive clip multiplied the gradients by"
    ),
    "amp/cls_score_absmax": Scalar(
        max, "logits", "largest finite magnitude of cls_score"
    ),
    "amp/cls_score_absmax/<module path>": Scalar(
        max, "logits", "the same, of one classifier layer"
    ),
    "amp/cls_score_log2": Scalar(max, "log2", "log2 of cls_score_absmax"),
    "amp/cls_score_log2/<module path>": Scalar(
        max, "log2", "the same, of one classifier layer"
    ),
    "amp/fp16_limit_log2": Scalar(
        _latest, "log2", "log2 of 65504, FP16's largest number: a constant"
    ),
    "amp/clamp_limit_log2": Scalar(
        min, "log2", "log2 of HeadClampHook's limit, of several the smallest"
    ),
    "amp/cls_score_nan": Scalar(max, "values", "logits that are NaN, in all layers"),
    "amp/cls_score_inf": Scalar(
        max, "values", "logits that are infinite, in all layers"
    ),
    "amp/headroom_bits": Scalar(
        min, "bits", "log2(65504 / cls_score_absmax): doublings left to FP16's limit"
    ),
    "amp/headroom_bits/<module path>": Scalar(
        min, "bits", "doublings left to the largest number of the layer's own precision"
    ),
    "amp/bad_boxes_total": Scalar(
        _latest, "boxes", "invalid ground-truth boxes that BoxSanityHook found so far"
    ),
    "amp/bad_boxes_total/<flaw>": Scalar(
        _latest, "boxes", "the same, of one kind: zero, negative, ..."
    ),
    "amp/clamp_active": Scalar(max, "0 or 1", "HeadClampHook is clamping"),
    "amp/clamped_fraction": Scalar(max, "0 to 1", "share of logits beyond the clamp"),
    "amp/fallback_active": Scalar(
        max, "0 or 1", "PrecisionFallbackHook has left the configured precision"
    ),
    "amp/rollbacks_total": Scalar(_latest, "rollbacks", "rollbacks so far"),
    "amp/lr_factor": Scalar(
        _latest, "factor", "LR over the schedule's, after rollbacks and in re-warm-up"
    ),
}


def scalars_of(record: IterationRecord) -> dict[str, float]:
    """What an iteration has to publish: finite floats under the contract's names."""
    out: dict[str, float] = {}
    known = record.values

    def put(name: str, value: float) -> None:
        if math.isfinite(value):
            out[name] = float(value)

    def put_all(name: str, values: dict[str, float], worst: Reduce) -> None:
        """The worst of all under ``name``, and each under its own name beside it."""
        if not values:
            return
        put(f"amp/{name}", worst(values.values()))
        for own, value in values.items():
            if own:
                put(f"amp/{name}/{own}", value)

    scales = known.get("scale", {})
    put_all("scale_log2", {k: _log2(v) for k, v in scales.items()}, min)
    put_all("skipped_total", known.get("skipped_total", {}), sum)
    for name, worst in _WORST_ONLY.items():
        if values := record.all(name):
            put(f"amp/{name}", worst(values))
    finite = record.verdict.value in ("HEALTHY", "DIVERGED")
    put("amp/nonfinite", float(not finite))
    for group, norm in known.get("gradnorm", {}).items():
        put(f"amp/gradnorm/{group}" if group else "amp/gradnorm", norm)
    put_all("clip_max_norm", known.get("clip_max_norm", {}), min)
    layers = known.get("logit_absmax", {})
    if layers:
        put_all("cls_score_absmax", layers, max)
        # 0 is the largest of no finite value, or of zeros: no point on a log axis.
        log2 = {k: _log2_logit(v) for k, v in layers.items() if v}
        put_all("cls_score_log2", log2, max)
        put("amp/fp16_limit_log2", math.log2(FP16_MAX))
        put("amp/cls_score_nan", sum(record.all("logit_nan")))
        put("amp/cls_score_inf", sum(record.all("logit_inf")))
        put("amp/headroom_bits", headroom_bits(max(layers.values())))
    for layer, absmax in layers.items():
        limit = record.get("logit_limit", layer)
        if limit is not None:
            put(f"amp/headroom_bits/{layer}", headroom_bits(absmax, limit))
    if limits := record.all("clamp_limit"):
        put("amp/clamp_limit_log2", math.log2(min(limits)))
    if clamped := record.all("clamped"):
        put("amp/clamped_fraction", max(clamped))
    put_all("bad_boxes_total", known.get("bad_boxes_total", {}), sum)
    for quantity, name in _COUNTS_AND_FLAGS.items():
        if (value := record.get(quantity)) is not None:
            put(name, value)
    band = {name: record.get(quantity) or 0.0 for quantity, name in _BAND.items()}
    # All three or none: TensorBoard draws a margin only of points that match.
    if min(band.values()) > 0:
        for name, value in band.items():
            put(name, _log2(value))
    if propagated := record.all("backward_loss"):
        put("amp/loss", sum(propagated))
    return out


def _log2(x: float) -> float:
    return max(SCALE_LOG2_MIN, math.log2(x)) if x > 0 else SCALE_LOG2_MIN


def _log2_logit(absmax: float) -> float:
    """Smallest logits count as 1/256, as in the headroom; NaN stays NaN."""
    return math.log2(FP16_MAX) - headroom_bits(absmax)


def merge_worst(into: dict[str, float], new: dict[str, float]) -> None:
    """Merge scalars into others, keeping the worse value of each."""
    for name, value in new.items():
        old = into.get(name, value)
        into[name] = value if old == value else _spec(name).worst(old, value)


@lru_cache(maxsize=None)  # a run has but so many names
def _spec(name: str) -> Scalar:
    if name in SCALARS:
        return SCALARS[name]
    stem = "/".join(name.split("/")[:2])  # what follows may hold slashes of its own
    return next(s for key, s in SCALARS.items() if key.startswith(stem + "/<"))


def legal_name(name: str) -> str:
    """The name under which every backend accepts a scalar.

    A group or an optimizer may be called what its user likes. What MLflow would refuse
    (other characters than ASCII letters, digits and ``_-. /``, a path that is not
    normalised, too long a name) is replaced. A changed name ends with a checksum of the
    original, so that two that would become equal stay two.
    """
    # Normalised below a root, so that '..' cannot leave it.
    legal = posixpath.normpath("/" + _ILLEGAL.sub("_", name)).lstrip("/")[:_LONGEST]
    legal = legal.rstrip("/")
    if legal == name:
        return name
    return f"{legal}-{zlib.crc32(name.encode()) & 0xFFFF:04x}"


def as_files(scalars: dict[str, float]) -> dict[str, float]:
    """The names for a store in which a name cannot also be a folder of names.

    ``amp/gradnorm/backbone`` beside ``amp/gradnorm`` becomes ``amp/gradnorm.backbone``.
    """
    out = {}
    for name, value in scalars.items():
        head, _, tail = name.partition("/")
        out[f"{head}/{tail.replace('/', '.')}" if tail else name] = value
    return out
