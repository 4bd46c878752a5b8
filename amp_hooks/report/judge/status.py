"""How a run ended: healthy, recovered or lost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from ...engine import exit_status
from ...engine.config_values import dig
from ...engine.events import in_words
from ...engine.verdict import Verdict
from ...engine.words import Line, count, first_names, places
from ...monitor.skips import PATIENCE as COLLAPSE_SKIPS
from ...rollback.policy import WINDOW, BadStreak
from ..read.history import RunHistory
from .beginning import broken_beginning
from .incidents import Incidents
from .metrics import fallen

_BY_HAND = ("KeyboardInterrupt", "SystemExit")
_BAD = {v.value for v in Verdict if v.is_bad}


class Status(IntEnum):
    """How a run ended; the value is the exit status of the command.

    Attributes:
        HEALTHY: Nothing but a loss scale that found its level, a loss that left its
            range and came back, or a loss term that was NaN and did no harm.
        RECOVERED: Something was not finite, had to be undone, or the run was ill; the
            end is healthy.
        LOST: The end is not: an exception, NaN, a run that is ill, a loss scale of
            nothing, or an mAP of 0.
    """

    HEALTHY = 0
    RECOVERED = 1
    LOST = 2


@dataclass(frozen=True)
class Judgement:
    """A status and why.

    Attributes:
        status: How the run ended.
        reasons: Each a clause for a sentence; empty for a healthy run.
        by_numbers: Lost by its numbers, and not only by an exception that has nothing
            to do with them: a full memory, say.
    """

    status: Status
    reasons: list[str]
    by_numbers: bool = False


def judge(run: RunHistory, found: Incidents) -> Judgement:
    """Judge a run by what there is of it."""
    if lost := list(_lost(run, found)):
        abort = last_abort(run)
        foreign = abort is not None and _is_foreign(run, abort)
        return Judgement(Status.LOST, lost, by_numbers=len(lost) > foreign)
    if recovered := list(_recovered(run, found)):
        return Judgement(Status.RECOVERED, recovered)
    return Judgement(Status.HEALTHY, [])


def _lost(run: RunHistory, found: Incidents) -> Iterator[str]:
    if abort := _ended_by_exception(run):
        yield abort
    if ill := found.ends_ill:
        yield f"the run has diverged ({ill.words})"
    if broken := broken_beginning(run):
        yield broken
    checkpoint = run.checkpoint
    if checkpoint and checkpoint.nonfinite:
        names = checkpoint.nonfinite
        yield (
            f"{count(len(names), 'tensor')} of the newest checkpoint (written after "
            f"iteration {checkpoint.iter - 1}) not finite: {first_names(names)}"
        )
    if ends := _ends_bad(found):
        yield ends
    if collapsed := _scale_collapsed(run):
        yield collapsed
    if fell := fallen(run):
        yield fell


def last_abort(run: RunHistory) -> Line | None:
    """The line of the exception that ended the last start."""
    lines = run.starts[-1].lines if run.starts else []
    aborts = [line for line in lines if line["event"] == "abort"]
    return aborts[-1] if aborts else None


def stopped_by_hand(abort: Line) -> bool:
    """Whether somebody ended training, and nothing in it did.

    With ``sys.exit(1)`` somebody's code ends it where the loss is NaN, too. A scheduler
    ends it with 128 and more, the number of the signal.
    """
    kind, _, text = str(abort.get("error", "")).partition(":")
    failed = kind == "SystemExit" and exit_status.is_failure(
        exit_status.from_text(text.strip())
    )
    at_nan = failed and abort.get("verdict") in _BAD
    return kind in _BY_HAND and not at_nan


def _is_foreign(run: RunHistory, abort: Line) -> bool:
    """Whether the exception has nothing to do with numbers."""
    kind = str(abort.get("error", "TrainingDivergedError")).split(":")[0]
    ours = kind in ("TrainingDivergedError", "FloatingPointError")
    # What ForensicsHook has looked into was raised because of NaN.
    because_of_nan = any(
        line["event"] in ("abort", "forensics")
        and (line["iter"], line.get("verdict")) == (abort["iter"], "RAISED")
        for line in run.starts[-1].lines
    )
    return not (ours or because_of_nan or stopped_by_hand(abort))


def _ended_by_exception(run: RunHistory) -> str | None:
    """RollbackHook's, or any other, named."""
    abort = last_abort(run)
    if abort is None or stopped_by_hand(abort):
        return None
    text = in_words(abort).rstrip(".")
    return f"{text[:1].lower()}{text[1:]} (iteration {abort['iter']})"


def _ends_bad(found: Incidents) -> str | None:
    """The last iterations are not finite, and not because of one bad batch."""
    if found.poisoned_to_end:
        return (
            f"the last logged loss (iteration {found.poisoned[-1]}) is not finite: at "
            f"least one of the {found.mean_over} iterations that it is the mean of was "
            "not, and no checkpoint tells more"
        )
    skipped = found.skipped_at_the_end
    calibrated = len(skipped) > 0 and skipped[0] - found.first >= found.step_every
    if len(skipped) >= COLLAPSE_SKIPS and calibrated:
        return (
            f"from iteration {skipped[0]} to the last one, {found.last}, every step "
            "was skipped, for its gradients overflowed"
        )
    if not len(found.bad):
        return None
    after = int(found.rollbacks[-1]) if len(found.rollbacks) else found.first - 1
    streak = BadStreak()  # what RollbackHook calls sustained
    bad = set(found.bad[-WINDOW:].tolist())
    for iteration in range(max(after + 1, found.last - WINDOW + 1), found.last + 1):
        streak.add(iteration in bad)
    first, last = found.streaks[-1]
    if last == found.last and last not in found.undone:
        return f"from iteration {first} to the last one, {last}, the run is not finite"
    if streak.too_many:
        number = int((found.bad > found.last - WINDOW).sum())
        return (
            f"{number} of the last {min(WINDOW, found.last - found.first + 1)} "
            f"iterations, up to {last}, are not finite"
        )
    return None


def _scale_collapsed(run: RunHistory) -> str | None:
    """The loss scale ended below 1, far from where it began, and no step is taken.

    Below 1 it makes gradients smaller than they are, which cures nothing. A scale that
    was set there, or bears clean steps there, has not collapsed.
    """
    scales = run.curve("amp/scale_log2")
    tracker = run.curve("amp/growth_tracker")
    checkpoint = run.checkpoint
    now = run.curve("amp/nonfinite")  # published with it, as long as there is a scale
    if len(scales) and len(now) and now.iters[-1] > scales.iters[-1]:
        return None  # PrecisionFallbackHook has left FP16
    if len(scales) and run.starts[-1].watched:
        began, ended = 2.0 ** scales.values[0], 2.0 ** scales.values[-1]
        clean = len(tracker) > 0 and tracker.values[-1] > 0
        at = int(scales.iters[-1])
    elif checkpoint and checkpoint.scale is not None:
        began, ended = _first_scale(run), checkpoint.scale
        clean, at = checkpoint.growth > 0, checkpoint.iter - 1
    else:
        return None
    if began < 1 or ended >= 1 or clean:
        return None
    return f"the loss scale has collapsed to {ended:.3g} by iteration {at}"


def _first_scale(run: RunHistory) -> float:
    configured = dig(run.config, "optim_wrapper", "loss_scale")
    if isinstance(configured, dict):
        configured = configured.get("init_scale")
    is_number = isinstance(configured, (int, float))
    return float(configured) if is_number else 65536.0  # GradScaler's own start


def _recovered(run: RunHistory, found: Incidents) -> Iterator[str]:
    if len(found.bad):
        where = places(map(int, found.bad))
        yield f"{count(len(found.bad), 'iteration')} not finite ({where})"
    if n := len(found.poisoned):
        yield (
            f"{count(n, 'logged mean')} of the loss not finite, each of "
            f"{count(found.mean_over, 'iteration')}"
        )
    if divergences := found.divergences:
        what = count(len(divergences), "divergence")
        of_several = "last " * (len(divergences) > 1)
        yield f"{what} ({of_several}{divergences[-1].words})"
    if n := len(found.collapses):
        yield (
            f"the loss scale collapsing ({count(n, 'iteration')}, last "
            f"{found.collapses[-1]})"
        )
    # Without the ledger, the scalars tell at least this much.
    for name, events, scalar in (
        ("rollback", found.rollbacks, "amp/rollbacks_total"),
        ("head clamp", found.clamps, "amp/clamp_active"),
    ):
        values = run.curve(scalar).finite.values
        if n := max(len(events), int(max(values, default=0))):
            yield count(n, name)
    left = [h for h in run.having("fallback", lost=False) if "reason" in h.line]
    if left:
        yield f"FP16 left for {left[-1].line.get('to')} at iteration {left[-1].iter}"
    if n := len(found.lost_bad):
        yield f"{count(n, 'iteration')} not finite that a kill took back"
