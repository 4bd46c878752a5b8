"""What to change, in the order in which it is worth trying, with the evidence."""

from __future__ import annotations

from ..read.history import RunHistory
from .advice_overflow import clamp, clip, leave_fp16
from .advice_training import attach, images, inputs, lower_lr, of_the_input, warm_up
from .causes import Causes, explained
from .change import Advice, written
from .incidents import Incidents
from .recipe import read_recipe
from .status import Judgement, Status


def advise(
    run: RunHistory, found: Incidents, causes: Causes, judged: Judgement
) -> list[Advice]:
    """What is worth changing, in order; nothing for a healthy run."""
    if judged.status is Status.HEALTHY:
        return []
    recipe = read_recipe(run)
    cure = list(attach(run, found, recipe, judged))
    lost = judged.status is Status.LOST
    advice = [*(cure if lost else []), *inputs(run)]
    advice += images(run, found, causes, recipe)
    of_data = explained(found, (h.iter for h in of_the_input(run)))
    if found.divergences or not (causes.all_by_images or of_data):
        advice += lower_lr(run, found, causes, recipe, judged)
        advice += warm_up(run, found, causes, recipe)
        advice += [] if lost else cure
        advice += clip(run, found, recipe)
        if any("StabilityHook" in a.hooks for a in advice):
            # It clamps as well: what speaks for that speaks for it.
            for a in clamp(run, found):
                cure[0].evidence.extend(a.evidence)
        else:
            advice += clamp(run, found)
    advice += leave_fp16(run, found, recipe)
    return written(advice, recipe)
