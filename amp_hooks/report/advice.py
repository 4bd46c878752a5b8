"""What to change, in the order in which it is worth trying, with the evidence."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from ..core.finite import first_names
from .curves import Curve
from .findings import Findings, any_within
from .history import RunHistory
from .hooks_of import has_hook
from .recipe import Recipe, read_recipe
from .status import Judgement, Status, count
from .suspects import Suspects

# RollbackHook's default lr_factor, which dlib takes when training diverges.
_LR_FACTOR = 0.1
# Three in a row are RollbackHook's patience: one bad batch is data, two are bad luck.
_STREAK = 3
_WINDOW = 20  # RollbackHook's window
_WARMUP = 500  # iterations of it in MMDetection's own schedules
_TRIGGER = 1000.0  # HeadClampHook's default for large logits
# An order of magnitude: a smaller spike is within what batches differ by.
_SPIKE = 10.0
# What is logged is the worst of ten iterations or a mean; twice its median lets a
# healthy step pass.
_CLIP_AT = 2.0
_SHOWN = 5  # pieces of evidence of one kind


@dataclass(frozen=True)
class Advice:
    """One change to a config.

    Attributes:
        title: What to do.
        change: Lines to paste into the config.
        evidence: Numbers with their iterations.
    """

    title: str
    change: str
    evidence: list[str]


def advise(
    run: RunHistory, found: Findings, suspects: Suspects, judged: Judgement
) -> list[Advice]:
    """What is worth changing, in order; nothing for a healthy run."""
    if judged.status is Status.HEALTHY:
        return []
    recipe = read_recipe(run)
    advice = list(_images(run, found, suspects, recipe))
    if not suspects.all_by_images:
        advice += _lower_lr(run, found, suspects, recipe, judged)
        advice += _warm_up(found, recipe)
        advice += _clip(run, found, recipe)
        advice += _clamp(run, found)
    return [*advice, *_bf16(run, found, recipe)]


def _images(
    run: RunHistory, found: Findings, suspects: Suspects, recipe: Recipe
) -> Iterator[Advice]:
    evidence = [
        f"{image} was in bad iterations {first_names(list(map(str, iters)), _SHOWN)}"
        for image, iters in list(suspects.images.items())[:_SHOWN]
    ]
    if not evidence and not recipe.box_filter:
        evidence = list(islice(_lone_box_losses(run, found), _SHOWN))
    if not evidence:
        return
    boxes = (
        "# in train_pipeline, after the last step that changes boxes:\n"
        "dict(type='FilterAnnotations', min_gt_bbox_wh=(1, 1)),"
    )
    hook = "'amp_hooks.BadBatchHook', skip=True"
    if recipe.whole_suite:
        hook = "'amp_hooks.StabilityHook', bad_batch=dict(skip=True)"
    skip = f"# in custom_hooks, to leave out images that come back:\ndict(type={hook}),"
    change = [] if recipe.box_filter else [boxes]
    change += [skip] if suspects.images else []
    yield Advice(
        "Look at these images and their boxes" if suspects.images else "Filter boxes",
        "\n".join(change),
        evidence,
    )


def _lone_box_losses(run: RunHistory, found: Findings) -> Iterator[str]:
    """Box losses that fail alone, in single iterations, beside calm logits.

    That is what boxes of no size do; a run that diverges fails for longer, and takes
    the classification with it.
    """
    lone = {first for first, last in found.streaks if first == last}
    for h in run.having("overflow", lost=False):
        losses = [x for x in h.names("losses") if x != "loss"]
        of_boxes = all("bbox" in x or "iou" in x or "dfl" in x for x in losses)
        if h.iter in lone and losses and of_boxes and not h.names("layers"):
            logits = run.curve("amp/cls_score_absmax").within(0, h.iter + 2).finite
            largest = float(max(logits.values[-3:], default=0))
            if largest < _TRIGGER:
                yield (
                    f"iteration {h.iter}: {', '.join(losses)} not finite, the "
                    "classification was, and so were the iterations around it"
                )


def _lower_lr(
    run: RunHistory,
    found: Findings,
    suspects: Suspects,
    recipe: Recipe,
    judged: Judgement,
) -> Iterator[Advice]:
    evidence = []
    changed = run.having("rollback", "recover", lost=False)
    factor = changed[-1].number("lr_factor", 1.0) if changed else 1.0
    lost = judged.status is Status.LOST
    if changed and not factor < 1 and not lost:
        return  # it has risen again to what the config says, and that held
    longest = max(found.streaks, key=lambda s: s[1] - s[0], default=(0, -1))
    if longest[1] - longest[0] + 1 >= _STREAK:
        evidence.append(
            f"iterations {longest[0]} to {longest[1]} were not finite, "
            f"{longest[1] - longest[0] + 1} in a row"
        )
    if lost and found.poisoned_to_end:
        evidence.append(f"the logged loss was not finite from {found.first_bad} on")
    rates = suspects.rates
    if rates and rates.telling:
        evidence.append(
            f"all {rates.bad} bad iterations had a learning rate of at least "
            f"{rates.lowest:.3g}, none of {rates.below} below it was bad"
        )
    if factor < 1:
        held = found.healthy_since
        evidence.append(
            f"x{factor:g} since the {changed[-1].event} at iteration "
            f"{changed[-1].iter}: "
            + ("that did not hold" if lost else f"the last {held} iterations held")
        )
    if not evidence:
        return
    if rates:
        evidence.append(
            f"the first bad iteration had a learning rate of {rates.first:.3g}"
        )
    # What held; else one step further than what was tried.
    wanted = factor if factor < 1 and not lost else factor * _LR_FACTOR
    title = f"Lower the learning rate, to x{wanted:g}"
    change = f"# multiply each learning rate by {wanted:g}"
    if recipe.lr is not None:
        title += f" ({recipe.lr:g} to {recipe.lr * wanted:.3g})"
        change = f"optim_wrapper = dict(optimizer=dict(lr={recipe.lr * wanted:.3g}))"
    yield Advice(title, change, evidence)


def _warm_up(found: Findings, recipe: Recipe) -> Iterator[Advice]:
    first = found.first_bad
    if not recipe.known or first is None or recipe.warmup == float("inf"):
        return
    warmup = int(recipe.warmup)
    # Soon after it: Adam's and BatchNorm's averages are of the warm-up still.
    if first >= (2 * warmup or _WARMUP):
        return
    # Of a short run a tenth, and in any case well beyond where it failed.
    usual = min(_WARMUP, (found.last - found.first + 1) // 10)
    end = max(2 * warmup, 2 * (first + 1), usual)
    had = f"a warm-up of {warmup} iterations" if warmup else "no warm-up in the config"
    place = "in place of the present one" if warmup else "first"
    change = (
        f"# in param_scheduler, {place}:\n"
        "dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, "
        f"end={end}),"
    )
    yield Advice(
        f"Lengthen the warm-up, to {end} iterations"
        if warmup
        else f"Warm up, for {end} iterations",
        change,
        [f"the first bad iteration was {first}, with {had}"],
    )


def _clip(run: RunHistory, found: Findings, recipe: Recipe) -> Iterator[Advice]:
    norms = run.curve("amp/gradnorm", "grad_norm").finite
    if not (recipe.known and len(norms) and found.streaks):
        return
    calm = _calm(norms, found)
    if not len(calm):
        return
    median = float(np.median(calm.values))
    if recipe.clip is not None and recipe.clip <= _SPIKE * median:
        return  # it cuts such spikes already
    spikes = []
    for first, _ in found.streaks:
        before = norms.within(max(0, first - _WINDOW), first + 1)
        if len(before) and before.values.max() > _SPIKE * median:
            top = int(before.values.argmax())
            spikes.append((int(before.iters[top]), float(before.values[top])))
    if not spikes:
        return
    at, worst = max(spikes, key=lambda spike: spike[1])
    limit = float(f"{_CLIP_AT * median:.2g}")
    now = "no clip_grad" if recipe.clip is None else f"clip_grad at {recipe.clip:g}"
    yield Advice(
        f"Clip gradients, at {limit:g}",
        f"optim_wrapper = dict(clip_grad=dict(max_norm={limit:g}, norm_type=2))",
        [
            f"gradient norm {worst:.3g} by iteration {at}, {worst / median:.0f} times "
            f"the healthy median of {median:.3g}; {now}"
        ],
    )


def _calm(norms: Curve, found: Findings) -> Curve:
    """Without the points that a bad iteration or what led to it may be in."""
    near = any_within(found.bad, norms.iters - _WINDOW, norms.iters + _WINDOW)
    return Curve(norms.iters[~near], norms.values[~near])


def _clamp(run: RunHistory, found: Findings) -> Iterator[Advice]:
    if has_hook(run, "HeadClampHook"):
        return
    evidence = []
    logits = run.curve("amp/cls_score_absmax").finite
    if len(logits) and logits.values.max() >= _TRIGGER:
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
        yield Advice(
            "Clamp the head",
            "# in custom_hooks:\ndict(type='amp_hooks.HeadClampHook'),",
            evidence,
        )


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


def _bf16(run: RunHistory, found: Findings, recipe: Recipe) -> Iterator[Advice]:
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
        evidence.append(f"loss scale 2^{scales.values.min():g} by iteration {at}")
    elif checkpoint and checkpoint.scale is not None and checkpoint.scale <= 1:
        evidence.append(
            f"loss scale {checkpoint.scale:.3g} at iteration {checkpoint.iter}"
        )
    # In the precision that each layer ran in: under the clamp that is FP32 already.
    for layer, curve in run.layers("amp/headroom_bits").items():
        bits = curve.finite
        if len(bits) and bits.values.min() < 1:  # less than a doubling is left
            at = int(bits.iters[bits.values.argmin()])
            evidence.append(
                f"{layer}: {bits.values.min():.2g} bits of headroom by iteration {at}"
            )
    for h in run.having("fallback", lost=False):
        if "reason" in h.line:
            evidence.append(
                f"iteration {h.iter}: PrecisionFallbackHook left FP16 for "
                f"{h.line.get('to')}"
            )
    if not evidence:
        return
    device = (run.opening or {}).get("device")
    yield Advice(
        "Train in BF16, if the device has it (NVIDIA: compute capability 8.0 or more"
        + (f"; this run was on {device})" if device else ")"),
        "optim_wrapper = dict(dtype='bfloat16')",
        evidence,
    )
