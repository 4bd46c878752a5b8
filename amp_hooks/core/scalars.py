"""The scalars the suite publishes: their names, meaning and worst value."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from .logits import headroom_bits
from .recorder import IterationRecord

Reduce = Callable[[Iterable[float]], float]

# log2 of the smallest float32 above 0: what a scale of exactly 0.0 is drawn as.
SCALE_LOG2_MIN = -149.0


@dataclass(frozen=True)
class Scalar:
    """One published scalar.

    Attributes:
        worst: Merges values since the last publication so that no spike is lost.
        unit: What it is measured in.
        meaning: One line for the README's table.
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
_COUNTS_AND_FLAGS = (
    "vetoes_total",
    "clamp_active",
    "fallback_active",
    "rollbacks_total",
    "lr_factor",
)


def _latest(old: float, new: float) -> float:
    return new


SCALARS = {
    "amp/scale_log2": Scalar(min, "log2", "loss scale used by the step"),
    "amp/scale_log2/<optimizer>": Scalar(
        min, "log2", "the same, of one optimizer of an OptimWrapperDict"
    ),
    "amp/growth_tracker": Scalar(
        min, "steps", "clean steps since the loss scale changed; at 2000 it doubles"
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
    "amp/gradnorm": Scalar(max, "L2 norm", "unscaled gradient norm before clipping"),
    "amp/gradnorm/<group>": Scalar(max, "L2 norm", "the same, of one parameter group"),
    "amp/adaptive_clip": Scalar(
        min, "factor", "what the adaptive clip multiplied the gradients by"
    ),
    "amp/cls_score_absmax": Scalar(
        max, "logits", "largest finite magnitude of cls_score"
    ),
    "amp/cls_score_absmax/<module path>": Scalar(
        max, "logits", "the same, of one classifier layer"
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

    def put(name: str, value: float | None) -> None:
        if value is not None and math.isfinite(value):
            out[name] = float(value)

    def put_all(name: str, values: dict[str, float], worst: Reduce) -> None:
        """The worst of all under ``name``, and each under its own name beside it."""
        if values:
            put(f"amp/{name}", worst(values.values()))
        for own, value in values.items():
            if own:
                put(f"amp/{name}/{own}", value)

    scales = record.values.get("scale", {})
    put_all("scale_log2", {k: _log2(v) for k, v in scales.items()}, min)
    put_all("skipped_total", record.values.get("skipped_total", {}), sum)
    for name, worst in _WORST_ONLY.items():
        if values := record.all(name):
            put(f"amp/{name}", worst(values))
    put("amp/nonfinite", float(record.verdict.value != "HEALTHY"))
    for group, norm in record.values.get("gradnorm", {}).items():
        put(f"amp/gradnorm/{group}" if group else "amp/gradnorm", norm)
    layers = record.values.get("logit_absmax", {})
    put_all("cls_score_absmax", layers, max)
    if layers:
        put("amp/cls_score_nan", sum(record.all("logit_nan")))
        put("amp/cls_score_inf", sum(record.all("logit_inf")))
        put("amp/headroom_bits", headroom_bits(max(layers.values())))
    for layer, absmax in layers.items():
        limit = record.get("logit_limit", layer)
        if limit is not None:
            put(f"amp/headroom_bits/{layer}", headroom_bits(absmax, limit))
    if clamped := record.all("clamped"):
        put("amp/clamped_fraction", max(clamped))
    for name in _COUNTS_AND_FLAGS:
        put(f"amp/{name}", record.get(name))
    return out


def _log2(x: float) -> float:
    return max(SCALE_LOG2_MIN, math.log2(x)) if x > 0 else SCALE_LOG2_MIN


def merge_worst(old: dict[str, float], new: dict[str, float]) -> dict[str, float]:
    """Merge two sets of scalars, keeping the worse value of each."""
    merged = dict(old)
    for name, value in new.items():
        merged[name] = _spec(name).worst(old[name], value) if name in old else value
    return merged


def _spec(name: str) -> Scalar:
    if name in SCALARS:
        return SCALARS[name]
    stem = name.rsplit("/", 1)[0]
    return next(s for key, s in SCALARS.items() if key.startswith(stem + "/<"))
