"""Advice on what a run is trained with: images, learning rate, warm-up."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from ...clamp.trigger import TRIGGER
from ...config_check.warmup import USUAL_WARMUP, remedy_warmup
from ...data.boxes import FLAWS
from ...engine.verdict import Verdict
from ...engine.words import count, first_names
from ...rollback.policy import LR_FACTOR, PATIENCE, WARMUP_ITERS, returned_at_once
from ..read.history import Happening, RunHistory
from .causes import Causes
from .change import Advice
from .divergence import Divergence
from .incidents import Incidents
from .recipe import Recipe, argument_of, has_hook, remedy
from .status import Judgement, Status

_SHOWN = 5  # pieces of evidence of one kind
_OF_FORWARD = (Verdict.FORWARD_NONFINITE.value, Verdict.RAISED.value)


def inputs(run: RunHistory) -> Iterator[Advice]:
    """For values in the batch itself that were not finite."""
    lines = of_the_input(run)[:_SHOWN]
    evidence = []
    for h in lines:
        batches = [b for b in run.having("bad_batch") if b.iter == h.iter]
        names = [name for batch in batches for name in batch.names("images")]
        of = f", of {first_names(names)}" * bool(names)
        evidence.append(f"iteration {h.iter}: {_finding(h)}{of}")
    if lines:
        yield Advice(
            "Look at the data: what the model was given was not finite",
            evidence,
            notes=[f"more in {lines[0].line.get('folder')}"],
        )


def of_the_input(run: RunHistory) -> list[Happening]:
    """ForensicsHook's lines on batches that were not finite themselves."""
    lines = run.having("forensics", lost=False)
    return [h for h in lines if h.line.get("kind") == "input"]


def _finding(h: Happening) -> str:
    return str(h.line.get("finding")).rstrip(".")


def no_rate(run: RunHistory, found: Incidents) -> Iterator[Advice]:
    """For what came back at once, at learning rates of next to nothing."""
    rollbacks = [int(i) for i in found.rollbacks]
    factors = [h.number("lr_factor", 1.0) for h in run.having("rollback", lost=False)]
    first = "in the first iteration, before any step"
    evidence = [f"not finite {first}"] * (found.first_bad == found.first)
    evidence.append(
        f"not finite again {' and '.join(_after(rollbacks, found.last))} iterations "
        "after rollbacks, when a learning rate of "
        f"{' and '.join(f'x{f:g}' for f in factors[-2:])} had hardly begun to rise"
    )
    yield Advice(
        "Look for the cause in data or code: the learning rate is none",
        evidence,
        [f"iteration {h.iter}: {_finding(h)}" for h in run.having("forensics")[:1]],
    )


def _back_at_once(run: RunHistory, found: Incidents) -> bool:
    lines = run.having("rollback", lost=False)
    forward = [h.line.get("verdict") in _OF_FORWARD for h in lines[-2:]]
    if not lines or not all(forward):
        return False
    factor = lines[-1].number("lr_factor", 1.0)
    again = argument_of(run, "RollbackHook", "warmup_iters", WARMUP_ITERS)
    return returned_at_once([h.iter for h in lines], found.last, factor, again)


def _after(rollbacks: list[int], last: int) -> list[str]:
    ends = [*rollbacks, last][-3:]
    return [str(b - a) for a, b in zip(ends, ends[1:])]


def images(
    run: RunHistory, found: Incidents, causes: Causes, recipe: Recipe
) -> Iterator[Advice]:
    """Images that came back, else boxes of no size."""
    evidence = [
        f"{image} was in bad iterations {first_names(list(map(str, iters)), _SHOWN)}"
        for image, iters in list(causes.images.items())[:_SHOWN]
    ]
    bad_boxes = list(islice(_bad_boxes(run, found), _SHOWN))
    evidence += bad_boxes
    if not evidence and not recipe.box_filter:
        evidence = list(islice(_lone_box_losses(run, found), _SHOWN))
    if not evidence:
        return
    pipeline = "train_pipeline, after the last step that changes boxes"
    boxes = dict(type="FilterAnnotations", min_gt_bbox_wh=(1, 1))
    hooks: dict[str, dict[str, Any]] = {}
    if causes.images:  # to leave out images that come back
        hooks["BadBatchHook"] = dict(skip=True)
    if bad_boxes:  # to leave such boxes out
        hooks["BoxSanityHook"] = dict(action="drop")
    yield Advice(
        "Look at these images and their boxes" if causes.images else "Filter boxes",
        evidence,
        entries=[] if recipe.box_filter else [(pipeline, boxes)],
        hooks=hooks,
    )


def _bad_boxes(run: RunHistory, found: Incidents) -> Iterator[str]:
    """Boxes that BoxSanityHook found in the very iterations that were bad."""
    bad = set(map(int, found.bad))
    for h in run.having("boxes", lost=False):
        if h.iter in bad:
            flaws = first_names(h.names("counts"), len(FLAWS))
            yield (
                f"iteration {h.iter} was not finite, and had bad boxes ({flaws}) in "
                f"{first_names(h.names('images'))}"
            )


def _lone_box_losses(run: RunHistory, found: Incidents) -> Iterator[str]:
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
            if largest < TRIGGER:
                yield (
                    f"iteration {h.iter}: {', '.join(losses)} not finite, the "
                    "classification was, and so were the iterations around it"
                )


def lower_lr(
    run: RunHistory,
    found: Incidents,
    causes: Causes,
    recipe: Recipe,
    judged: Judgement,
) -> Iterator[Advice]:
    """A learning rate that held, or a step below the one that did not."""
    evidence: list[str] = []
    remarks: list[str] = []
    if judged.by_numbers and not found.divergences and _back_at_once(run, found):
        yield from no_rate(run, found)
        return
    changed = run.having("rollback", "recover", lost=False)
    factor = changed[-1].number("lr_factor", 1.0) if changed else 1.0
    lost = judged.status is Status.LOST and judged.by_numbers
    if changed and not factor < 1 and not lost:
        return  # it has risen again to what the config says, and that held
    longest = max(found.streaks, key=lambda s: s[1] - s[0], default=(0, -1))
    if longest[1] - longest[0] + 1 >= PATIENCE:
        evidence.append(
            f"iterations {longest[0]} to {longest[1]} were not finite, "
            f"{longest[1] - longest[0] + 1} in a row"
        )
    if lost and found.poisoned_to_end:
        evidence.append(f"the logged loss was not finite from {found.first_bad} on")
    for d in found.divergences[-_SHOWN:]:
        evidence.append(f"the run diverged from iteration {d.since} on{_told(d)}")
    rates = causes.rates
    if rates and rates.telling:
        evidence.append(
            f"all {rates.bad} bad iterations had a {rates.name} of at least "
            f"{rates.lowest:.3g}, none of {rates.below} below it was bad"
        )
    if factor < 1:
        held = f"the last {count(found.healthy_since, 'iteration')} held"
        text = f"x{factor:g} since the {changed[-1].event} at iteration "
        text += f"{changed[-1].iter}: {'that did not hold' if lost else held}"
        (evidence if lost else remarks).append(text)
    if not evidence:
        return
    if rates:
        remarks.append(
            f"the first bad iteration had a learning rate of {rates.first:.3g}"
        )
    onset = causes.onset
    if onset is not None:
        rose = onset.rise > 1 or onset.before is None
        (evidence if rose else remarks).append(f"the learning rate was {onset.words}")
    # What held; else one step further than what was tried, as RollbackHook takes it.
    step = min(LR_FACTOR, 1 / onset.rise) if onset else LR_FACTOR
    it_held = factor < 1 and not lost
    wanted = factor if it_held else float(f"{factor * step:.2g}")
    told = remedy(run, "lr")
    if told and recipe.lr and told < recipe.lr * (factor if lost else 1):
        # Unless it is known not to hold: one run, one number.
        wanted = told / recipe.lr
        remarks.append(f"{told:.4g} is what pre-flight gave for the batch size")
    title = f"Lower the learning rate, to x{wanted:.3g}"
    if recipe.lr is None:
        notes = [f"multiply each learning rate by {wanted:.3g}"]
        yield Advice(title, evidence, remarks, notes=notes)
        return
    lr = told if told and wanted == told / recipe.lr else recipe.lr * wanted
    lr = float(f"{lr:.4g}")
    title += f" ({recipe.lr:g} to {lr:g})"
    settings = dict(optim_wrapper=dict(optimizer=dict(lr=lr)))
    yield Advice(title, evidence, remarks, settings=settings)


def _told(divergence: Divergence) -> str:
    why = f": {divergence.why}" if divergence.why else ""
    return f" (certain in iteration {divergence.told}){why}"


def attach(
    run: RunHistory, found: Incidents, recipe: Recipe, judged: Judgement
) -> Iterator[Advice]:
    """For a run that was lost, or known to be ill, without what undoes and goes back.

    First of all, where it was lost: whatever else is changed, the next one is saved.
    """
    lost = judged.status is Status.LOST and judged.by_numbers
    alone = [d for d in found.divergences if not d.went_back]
    several = float((run.start_line or {}).get("world_size") or 1) > 1
    needed = ["StepGuardHook"] * (lost or several) + ["RollbackHook"]
    missing = [name for name in needed if not has_hook(run, name)]
    if not missing or not (lost or (alone and run.watched)):
        return
    evidence = list(judged.reasons) if lost else []
    if alone and run.watched:
        ill = sum((found.last if d.until is None else d.until) - d.told for d in alone)
        evidence.append(
            f"the run was ill for {count(ill, 'iteration')} after it was certain "
            f"(iteration {alone[0].told}), and without {' and '.join(missing)} it "
            "could not go back"
        )
    names = missing if run.watched else ["StabilityHook"]
    yield Advice(
        f"Attach {' and '.join(names)}",
        evidence,
        hooks={name: {} for name in names},
    )


def warm_up(
    run: RunHistory, found: Incidents, causes: Causes, recipe: Recipe
) -> Iterator[Advice]:
    """For a run that failed within or soon after its warm-up, or without one."""
    ill = [d.since for d in found.divergences]
    bad = None if causes.all_by_images else found.first_bad
    first = min([*ill, *([] if bad is None else [bad])], default=None)
    if not recipe.known or first is None or recipe.warmup == float("inf"):
        return
    warmup = int(recipe.warmup)
    # Soon after it: Adam's and BatchNorm's averages are of the warm-up still.
    if first >= (2 * warmup or USUAL_WARMUP):
        return
    planned = (run.start_line or {}).get("max_iters")
    iters = planned if isinstance(planned, int) else found.last - found.first + 1
    end = remedy_warmup(iters, warmup, first)
    told = remedy(run, "warmup")
    remarks = []
    if told and told > max(warmup, first):
        end = int(told)
        remarks.append(f"{end} is what pre-flight gave for the length of the run")
    elif told and told < end:
        remarks.append(
            f"pre-flight gave {told:g} for the length of the run, which would have "
            f"been over in iteration {first}"
        )
    had = f"a warm-up of {warmup} iterations" if warmup else "no warm-up in the config"
    place = "in place of the present one" if warmup else "first"
    entry = dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=end)
    yield Advice(
        f"Lengthen the warm-up, to {end} iterations"
        if warmup
        else f"Warm up, for {end} iterations",
        [f"{_what(first, ill)} {first}, with {had}"],
        remarks,
        entries=[(f"param_scheduler, {place}", entry)],
    )


def _what(first: int, ill: list[int]) -> str:
    return (
        "the run diverged from iteration"
        if first in ill
        else ("the first bad iteration was")
    )
