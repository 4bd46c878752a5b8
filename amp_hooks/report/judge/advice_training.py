"""Advice on what a run is trained with: images, learning rate, warm-up."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from ...clamp.trigger import TRIGGER
from ...config_check.warmup import USUAL_WARMUP, remedy_warmup
from ...data.boxes import FLAWS
from ...engine.words import count, first_names
from ...members import MEMBERS
from ...rollback.policy import LR_FACTOR, PATIENCE
from ..read.history import RunHistory
from .causes import Causes
from .change import Advice
from .divergence import Divergence
from .incidents import Incidents
from .recipe import Recipe, has_hook
from .status import Judgement, Status

_SHOWN = 5  # pieces of evidence of one kind


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
    boxes = (
        "# in train_pipeline, after the last step that changes boxes:\n"
        "dict(type='FilterAnnotations', min_gt_bbox_wh=(1, 1)),"
    )
    hook = "'amp_hooks.BadBatchHook', skip=True"
    if recipe.whole_suite:
        hook = "'amp_hooks.StabilityHook', bad_batch=dict(skip=True)"
    skip = f"# in custom_hooks, to leave out images that come back:\ndict(type={hook}),"
    change = [] if recipe.box_filter else [boxes]
    change += [skip] if causes.images else []
    if bad_boxes:
        hook = "'amp_hooks.BoxSanityHook', action='drop'"
        if recipe.whole_suite:
            hook = "'amp_hooks.StabilityHook', boxes=dict(action='drop')"
        change += [f"# in custom_hooks, to leave such boxes out:\ndict(type={hook}),"]
    yield Advice(
        "Look at these images and their boxes" if causes.images else "Filter boxes",
        "\n".join(change),
        evidence,
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
    evidence = []
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
    onset = causes.onset
    if onset is not None:
        evidence.append(f"the learning rate was {onset.words}")
    # What held; else one step further than what was tried, as RollbackHook takes it.
    step = min(LR_FACTOR, 1 / onset.rise) if onset else LR_FACTOR
    it_held = factor < 1 and not lost
    wanted = factor if it_held else float(f"{factor * step:.2g}")
    title = f"Lower the learning rate, to x{wanted:g}"
    change = f"# multiply each learning rate by {wanted:g}"
    if recipe.lr is not None:
        title += f" ({recipe.lr:g} to {recipe.lr * wanted:.3g})"
        change = f"optim_wrapper = dict(optimizer=dict(lr={recipe.lr * wanted:.3g}))"
    yield Advice(title, change, evidence)


def _told(divergence: Divergence) -> str:
    why = f": {divergence.why}" if divergence.why else ""
    return f" (certain in iteration {divergence.told}){why}"


def go_back(run: RunHistory, found: Incidents, recipe: Recipe) -> Iterator[Advice]:
    """For a run that was known to be ill, where nothing could go back."""
    alone = [d for d in found.divergences if not d.went_back]
    if not alone or not run.watched:
        return
    several = float((run.start_line or {}).get("world_size") or 1) > 1
    needed = ["RollbackHook", *["StepGuardHook"] * several]
    missing = [name for name in needed if not has_hook(run, name)]
    if not missing:
        return
    if recipe.whole_suite:
        members = " and ".join(m for m, hook in MEMBERS.items() if hook in missing)
        change = f"# {members} not left out:\ndict(type='amp_hooks.StabilityHook'),"
    else:
        change = "\n".join(f"dict(type='amp_hooks.{name}')," for name in missing)
    ill = sum((found.last if d.until is None else d.until) - d.told for d in alone)
    yield Advice(
        f"Attach {' and '.join(missing)}",
        f"# in custom_hooks:\n{change}",
        [
            f"the run was ill for {count(ill, 'iteration')} after it was certain "
            f"(iteration {alone[0].told}), and without {' and '.join(missing)} it "
            "could not go back"
        ],
    )


def warm_up(found: Incidents, causes: Causes, recipe: Recipe) -> Iterator[Advice]:
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
    # In any case well beyond where it failed.
    usual = remedy_warmup(found.last - found.first + 1)
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
        [f"{_what(first, ill)} {first}, with {had}"],
    )


def _what(first: int, ill: list[int]) -> str:
    return (
        "the run diverged from iteration"
        if first in ill
        else ("the first bad iteration was")
    )
