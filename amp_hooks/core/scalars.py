"""The scalars the suite publishes: their names, meaning and worst value."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from .logits import headroom_bits
from .recorder import IterationRecord

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


def _latest(old: float, new: float) -> float:
    return new


SCALARS = {
    "amp/scale_log2": Scalar(min, "log2", "loss scale used by the step"),
    "amp/skipped_total": Scalar(_latest, "steps", "optimizer steps skipped so far"),
    "amp/nonfinite": Scalar(max, "0 or 1", "an iteration had NaN or inf somewhere"),
    "amp/gradnorm": Scalar(max, "L2 norm", "unscaled gradient norm before clipping"),
    "amp/gradnorm/<group>": Scalar(max, "L2 norm", "the same, of one parameter group"),
    "amp/cls_score_absmax": Scalar(max, "logits", "largest finite |cls_score|"),
    "amp/cls_score_absmax/<module path>": Scalar(
        max, "logits", "the same, of one classifier layer"
    ),
    "amp/headroom_bits": Scalar(
        min, "bits", "log2(65504 / largest |cls_score|); below 0 FP16 overflows"
    ),
    "amp/clamp_active": Scalar(max, "0 or 1", "HeadClampHook is clamping"),
    "amp/clamped_fraction": Scalar(max, "0 to 1", "share of logits beyond the clamp"),
    "amp/rollbacks_total": Scalar(_latest, "rollbacks", "rollbacks so far"),
    "amp/lr_factor": Scalar(_latest, "factor", "what rollbacks multiplied the LR by"),
}


def scalars_of(record: IterationRecord) -> dict[str, float]:
    """What an iteration has to publish: finite floats under the contract's names."""
    out: dict[str, float] = {}

    def put(name: str, value: float | None) -> None:
        if value is not None and math.isfinite(value):
            out[name] = float(value)

    if scales := record.all("scale"):
        put("amp/scale_log2", max(SCALE_LOG2_MIN, _log2(min(scales))))
    put("amp/nonfinite", float(record.verdict.value != "HEALTHY"))
    for group, norm in record.values.get("gradnorm", {}).items():
        put(f"amp/gradnorm/{group}" if group else "amp/gradnorm", norm)
    layers = record.values.get("logit_absmax", {})
    for layer, value in layers.items():
        put(f"amp/cls_score_absmax/{layer}", value)
    if layers:
        put("amp/cls_score_absmax", max(layers.values()))
        put("amp/headroom_bits", headroom_bits(max(layers.values())))
    if clamped := record.all("clamped"):
        put("amp/clamped_fraction", max(clamped))
    for name in ("skipped_total", "clamp_active", "rollbacks_total", "lr_factor"):
        put(f"amp/{name}", record.get(name))
    return out


def _log2(x: float) -> float:
    return math.log2(x) if x > 0 else -math.inf


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
