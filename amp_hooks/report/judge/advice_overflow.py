"""Advice against overflow: clip gradients, clamp logits, leave FP16."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from ...clamp.trigger import TRIGGER
from ...engine.words import count, first_names
from ...monitor.skips import PATIENCE as COLLAPSE_SKIPS
from ...rollback.policy import WARMUP_ITERS, WINDOW
from ..read.curves import Curve
from ..read.history import RunHistory
from .change import Advice
from .incidents import Incidents, any_within, diverged
from .recipe import Recipe, has_hook, remedy

# An order of magnitude: a smaller spike is within what batches differ by.
_SPIKE = 10.0
# What is logged is the worst of ten iterations or a mean; twice its median lets a
# healthy step pass.
_CLIP_AT = 2.0
_SOON = 5 * WARMUP_ITERS  # after a precision was left: what it did not help against


def clip(run: RunHistory, found: Incidents, recipe: Recipe) -> Iterator[Advice]:
    """For spikes of the gradient norm before bad iterations, that pass uncut."""
    norms = run.curve("amp/gradnorm", "grad_norm").finite
    if not (recipe.known and len(norms) and found.onsets):
        return
    calm = _calm(norms, found)
    if not len(calm):
        return
    median = float(np.median(calm.values))
    if recipe.clip is not None and recipe.clip <= _SPIKE * median:
        return  # it cuts such spikes already
    spikes = []
    for first in found.onsets:
        before = norms.within(max(0, first - WINDOW), first + 1)
        if len(before) and before.values.max() > _SPIKE * median:
            top = int(before.values.argmax())
            spikes.append((int(before.iters[top]), float(before.values[top])))
    if not spikes:
        return
    at, worst = max(spikes, key=lambda spike: spike[1])
    limit = float(f"{_CLIP_AT * median:.2g}")
    told = remedy(run, "clip")
    if told is not None and told <= _SPIKE * median:
        limit = told  # pre-flight's, which cuts them as well
    now = "no clip_grad" if recipe.clip is None else f"clip_grad at {recipe.clip:g}"
    cut = dict(max_norm=int(limit) if limit.is_integer() else limit, norm_type=2)
    yield Advice(
        f"Clip gradients, at {limit:g}",
        [
            f"gradient norm {worst:.3g} by iteration {at}, {worst / median:.0f} times "
            f"the healthy median of {median:.3g}; {now}"
        ],
        settings=dict(optim_wrapper=dict(clip_grad=cut)),
    )


def _calm(norms: Curve, found: Incidents) -> Curve:
    """Without the points that a bad iteration or what led to it may be in."""
    near = any_within(found.bad, norms.iters - WINDOW, norms.iters + WINDOW)
    for d in found.divergences:
        end = found.last if d.until is None else d.until
        near |= (norms.iters >= d.since - WINDOW) & (norms.iters <= end + WINDOW)
    return Curve(norms.iters[~near], norms.values[~near])


def clamp(run: RunHistory, found: Incidents) -> Iterator[Advice]:
    """For large or non-finite logits that nothing bounds."""
    if has_hook(run, "HeadClampHook"):
        return
    evidence = []
    logits = run.curve("amp/cls_score_absmax").finite
    if len(logits) and logits.values.max() >= TRIGGER:
        top = int(logits.values.argmax())
        evidence.append(
            f"|cls_score| reached {logits.values[top]:.4g} by iteration "
            f"{logits.iters[top]}; FP16 ends at 65504"
        )
    layers = [h for h in run.having("overflow") if h.names("layers")]
    if layers:
        names = sorted({x for h in layers for x in h.names("layers")})
        evidence.append(
            f"logits of {', '.join(names[:3])} were not finite in "
            f"{count(len(layers), 'iteration')}, first {layers[0].iter}"
        )
    if warned := run.having("early_warning"):
        evidence.append(
            f"iteration {warned[0].iter}: early warning of "
            f"{warned[0].line.get('layer')}"
        )
    if not run.watched:
        evidence += _first_loss(run)
    if evidence:
        yield Advice("Clamp the head", evidence, hooks=dict(HeadClampHook={}))


def _first_loss(run: RunHistory) -> Iterator[str]:
    """Of a run without hooks: a classification loss was the first part to fail."""
    parts = {
        name: curve.iters[~np.isfinite(curve.values)]
        for name, curve in run.curves.items()
        if "loss" in name and name != "loss"
    }
    firsts = {name: int(bad[0]) for name, bad in parts.items() if len(bad)}
    first = min(firsts.values(), default=None)
    for name, at in firsts.items():
        if at == first and "cls" in name:
            others = [n for n in parts if firsts.get(n) != first]
            yield (
                f"{name} was not finite by iteration {at}"
                + (f", while {', '.join(others)} were" if others else "")
            )


def leave_fp16(run: RunHistory, found: Incidents, recipe: Recipe) -> Iterator[Advice]:
    """For a loss scale or a headroom that is used up."""
    if recipe.half != "float16":
        return
    evidence = []
    if n := len(found.collapses):
        evidence.append(
            f"the loss scale collapsed in {count(n, 'iteration')}, last "
            f"{found.collapses[-1]}"
        )
    scales = run.curve("amp/scale_log2")
    checkpoint = run.checkpoint
    if len(scales) and scales.values.min() <= 0:
        at = int(scales.iters[scales.values.argmin()])
        if not _fell_for_nan(found, at):
            evidence.append(
                f"loss scale {2.0 ** scales.values.min():.3g} by iteration {at}"
            )
    elif checkpoint and checkpoint.scale is not None and checkpoint.scale <= 1:
        evidence.append(
            f"loss scale {checkpoint.scale:.3g} after iteration {checkpoint.iter - 1}"
        )
    # In the precision that each layer ran in: under the clamp that is FP32 already.
    for layer, curve in run.layers("amp/headroom_bits").items():
        bits = curve.finite
        if len(bits) and bits.values.min() < 1:  # less than a doubling is left
            at = int(bits.iters[bits.values.argmin()])
            evidence.append(
                f"{layer}: {bits.values.min():.2g} bits of headroom by iteration {at}"
            )
    tried, left = run.having("fallback", lost=False), "FP16"
    for h, after in zip(tried, [*tried[1:], None]):
        taken_back = after is not None and "gave_up" in after.line
        if "reason" in h.line and not taken_back:
            evidence.append(
                f"iteration {h.iter}: PrecisionFallbackHook left {left} for "
                f"{h.line.get('to')}"
            )
        left = str(h.line.get("to"))
    vain = _in_vain(run)
    if not evidence or "float32" in vain:
        return
    if recipe.without_bf16 or "bfloat16" in vain:
        why = f"{first_names(recipe.without_bf16)} of mmcv has no BF16"
        if not recipe.without_bf16:
            why = "BF16 did not help"
            evidence.append(f"a rollback in BF16 as well, iteration {vain['bfloat16']}")
        yield _fp32(recipe, why, evidence)
        return
    # What BF16 does not need, and what would hold its gradients down for nothing.
    settings: dict[str, Any] = dict(dtype="bfloat16")
    if recipe.static_scale:
        settings["loss_scale"] = "dynamic"
    device = (run.start_line or {}).get("device")
    yield Advice(
        "Train in BF16, if the device has it (NVIDIA: compute capability 8.0 or more"
        + (f"; this run was on {device})" if device else ")"),
        evidence,
        settings=dict(optim_wrapper=settings),
    )


def _fell_for_nan(found: Incidents, at: int) -> bool:
    """Whether a scale fell with forward passes that were not finite, not by its range.

    GradScaler halves it for either.
    """
    skips = [(int(i), True) for i in found.bad if i <= at]
    skips += [(int(i), False) for i in found.overflows if i <= at]
    latest = [is_bad for _, is_bad in sorted(skips)[-COLLAPSE_SKIPS:]]
    return 2 * sum(latest) > len(latest)


def _in_vain(run: RunHistory) -> dict[str, int]:
    """Precisions that FP16 was left for, with the rollback that came soon in each.

    Of what was not finite: what diverges does so in any precision.
    """
    lines = run.having("fallback", lost=False)
    ends = [*(h.iter for h in lines[1:]), math.inf]
    found: dict[str, int] = {}
    for h, end in zip(lines, ends):
        for rollback in run.having("rollback", lost=False):
            soon = h.iter < rollback.iter <= min(end, h.iter + _SOON)
            if "reason" in h.line and soon and not diverged(rollback):
                found.setdefault(str(h.line.get("to")), rollback.iter)
    return found


def _fp32(recipe: Recipe, why: str, evidence: list[str]) -> Advice:
    """Where BF16 cannot be had, or was no help."""
    mixed = ("type", "dtype", "loss_scale", "use_fsdp")
    kept = {k: v for k, v in recipe.optim_wrapper.items() if k not in mixed}
    settings = dict(_delete_=True, type="OptimWrapper", **kept)
    return Advice(
        f"Train in FP32: {why}",
        evidence,
        ["with HeadClampHook(when='always') the classifier alone is in FP32"],
        settings=dict(optim_wrapper=settings) if kept else {},
        notes=[] if kept else ["in optim_wrapper: type='OptimWrapper', no loss_scale"],
    )
