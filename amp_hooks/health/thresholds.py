"""Every threshold of the health of a run: its value, its unit, and why it is that."""

from __future__ import annotations

from typing import NamedTuple, TypeVar

Number = TypeVar("Number", int, float)


class Threshold(NamedTuple):
    """A row of the table."""

    name: str
    value: float
    unit: str
    why: str


TABLE: list[Threshold] = []


def _row(name: str, value: Number, unit: str, why: str) -> Number:
    TABLE.append(Threshold(name, value, unit, why))
    return value


# Evidence is counted in shares of a patience: at 1 a run is ill.
WINDOW = _row("window", 100, "iterations", "healthy past that gives the level")
SPREAD_WINDOW = _row(
    "spread_window", 200, "iterations", "and its spread, slow waves as of GANs included"
)
FIRST = _row("first", 5, "iterations", "fewer give no level")
SMALL = _row(
    "small", 0.02, "of the first level", "below it losses count linearly, as nearly 0"
)
SIGNED = _row(
    "signed", 0.25, "of the loss", "small for one that goes below 0: it has no zero"
)
RANGE = _row("range", 0.45, "log", "x1.57: closing mosaic moves the loss by x1.4")
RANGE_SPREADS = _row(
    "range_spreads", 1.2, "spreads", "noise of this run, if it is wider than that"
)
RANGE_CREDIT = _row(
    "range_credit", 0.3, "log", "over the mean of the past: two data sets, say"
)
RANGE_LIMIT = _row("range_limit", 2.5, "log", "x12 is no noise of any run")
NEW_RATE = _row(
    "new_rate", 0.4, "log", "range is wider at a learning rate not had before"
)
NEW_RATE_MOST = _row(
    "new_rate_most", 3.0, "x", "a learning rate that jumps by more excuses nothing"
)
NEW_RATE_FOR = _row("new_rate_for", 100, "iterations", "and for so long only")
PATIENCE = _row(
    "patience", 30.0, "log x iterations", "x2 ill after 130, x3 50, x10 17, x100 8"
)
CLIP = _row("clip", 4.5, "log", "what one batch may add: never more than 15 %")
CREDIT = _row("credit", 1.5, "log", "what one batch may take away")
WATCH = _row("watch", 0.2, "of patience", "two batches, however large; one is data")
CALM = _row("calm", 50, "iterations", "in range in a row: well again by itself")
START_EARLY = _row(
    "start_early", 100, "iterations", "a hot start is judged by the first losses"
)
START_RANGE = _row(
    "start_range", 0.34, "log", "x1.4: healthy fine-tunes rise to x1.31 at most"
)
START_LATER = _row(
    "start_later", 0.7, "log", "x2 over an untrained model, once that is over"
)
START_SPREADS = _row(
    "start_spreads", 3.0, "spreads", "one batch's loss varies: 3 standard errors"
)
START_MOST = _row("start_most", 1.0, "log", "a ruin is noisy itself: x2.7 is no noise")
START_CLIP = _row("start_clip", 1.0, "log", "six batches at least, early")
START_AT_ONCE = _row(
    "start_at_once", 2.0, "log", "what is x12 before its noise is known: three batches"
)
START_PATIENCE = _row(
    "start_patience", 6.0, "log x iterations", "ruined starts are x1.9: 30 iterations"
)
START_RATE = _row(
    "start_rate", 0.1, "of the largest LR", "up to it a warm-up has done nothing"
)
START_LOOK = _row(
    "start_look",
    40,
    "iterations",
    "and 50, 60, 70: its weights of now and of the start; before, healthy ones cost as "
    "much as ruined ones",
)
START_WORSE = _row(
    "start_worse",
    1.73,
    "x",
    "over these looks: healthy fine-tunes x1.66 at most, ruined ones x1.81 at least",
)
START_FAR = _row(
    "start_far", 4.0, "x level", "no fine-tune: what is so far out waits for no look"
)
RISE_LOOK = _row(
    "rise_look",
    20,
    "iterations",
    "and 40, 80, 160 after the learning rate jumped: weights of now and of before",
)
RISE_WORSE = _row(
    "rise_worse", 1.55, "x", "at two looks in a row; a healthy restart costs x1.39"
)
STEP_FAR = _row(
    "step_far",
    100.0,
    "x",
    "the largest gradient norm of 100 steps: no noise of any run",
)
STEP_LOOK = _row(
    "step_look",
    3,
    "iterations",
    "and 6, 9, 12 after it: the weights of now and of before, over all of these",
)
STEP_WORSE = _row(
    "step_worse", 1.3, "x", "then: such a step did it; x1.48 halves what was learned"
)
STEP_AGAIN = _row(
    "step_again", 5000, "iterations", "in which it goes back once for that: it heals"
)
WORSE = _row(
    "worse", 1.2, "x", "ruined weights on one batch; changed data costs the old as much"
)
AGAINST_EACH_OTHER = _row(
    "against_each_other", 12.0, "x level", "less is no ruin where optimizers compete"
)
BLIND = _row(
    "blind",
    1.5,
    "x level",
    "weights that cost so much when taken, as a start's, know too little to tell",
)
UNLIKE = _row(
    "unlike", 2.0, "x", "on this batch, over when they were taken: so it is the data"
)
MODERATE = _row(
    "moderate", 2.0, "x", "weights that cost less are too sure of themselves, perhaps"
)
OPEN_FOR = _row(
    "open_for", 100, "iterations", "then it is asked again; what is learned shows"
)
LEARNS = _row(
    "learns", 0.98, "x", "the least median of so many iterations: ruined weights do not"
)
TERM_RANGE = _row("term_range", 3.4, "log", "x30: a term is noisier than the total")
DEAD = _row("dead", 1e-3, "of its median", "gradient norm of a model that cannot learn")
DEAD_RATIO = _row("dead_ratio", 1.5, "x level", "a converged run has small ones too")
DEAD_PATIENCE = _row("dead_patience", 10, "steps", "in a row, with the loss above")
CLAMPED = _row("clamped", 0.5, "of the logits", "bounded ones learn nothing")
CLAMPED_PATIENCE = _row(
    "clamped_patience", 100, "iterations", "in a row, with the loss above its level"
)
METRIC_FALLEN = _row("metric_fallen", 0.1, "of its best", "no change of data does it")
METRIC_LEAST = _row("metric_least", 0.02, "of the metric", "a best that means anything")
BACK_CALM = _row("back_calm", 20, "iterations", "in range after going back")
BACK_PATIENCE = _row("back_patience", 0.5, "of patience", "it has been ill before")
BACK_AT_ONCE = _row(
    "back_at_once", 4.0, "of patience", "far out at once: not the weights of before"
)
BACK_FOR = _row("back_for", 500, "iterations", "for so long after going back")
NORMAL_RATIO = _row(
    "normal_ratio", 4.0, "x level", "more is never accepted as a new normal"
)
NORMAL_NEAR = _row("normal_near", 0.35, "log", "the same height as before going back")
