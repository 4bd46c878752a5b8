"""What to change, in the order in which it is worth trying, with the evidence."""

from __future__ import annotations

from ..read.history import RunHistory
from .advice_overflow import bf16, clamp, clip
from .advice_training import go_back, images, lower_lr, warm_up
from .causes import Causes
from .change import Advice
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
    advice = list(images(run, found, causes, recipe))
    if found.divergences or not causes.all_by_images:
        advice += lower_lr(run, found, causes, recipe, judged)
        advice += warm_up(found, causes, recipe)
        advice += go_back(run, found, recipe)
        advice += clip(run, found, recipe)
        advice += clamp(run, found)
    return [*advice, *bf16(run, found, recipe)]
