"""The content of a report, whatever it is shown on."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...engine.config_values import dig
from ...engine.words import count, first_names
from ..judge.advise import advise
from ..judge.causes import find_causes
from ..judge.change import Advice
from ..judge.incidents import Incidents, find
from ..judge.metrics import last_metric, never_alive
from ..judge.status import (
    Judgement,
    Status,
    judge,
    last_abort,
    stopped_by_hand,
)
from ..read.curves import Curve
from ..read.history import RunHistory
from .active import describe
from .groups import Group, group
from .health import Quantity, Stretch, metric, quantities, stretches
from .terms import differing_terms

NO_LEDGER = "No ledger that can be read: amp_hooks would have written stability.jsonl."
NOTHING_TO_CHANGE = "Nothing to change."
OF_THE_TABLE = (
    "Iterations count from 0. Each row shows the worst of its stretch; of the loss, "
    "the mean."
)
NO_ADVICE = "None: nothing here points at what to change."


@dataclass(frozen=True)
class Page:
    """Everything a report says.

    Attributes:
        run: What was read.
        found: What happened.
        judged: How it ended.
        sentence: Verdict, what happened, what to do first.
        checkpoint: The last good one of a lost run, if nothing else names it, or ''.
        active: ``(label, text)`` of what was active.
        shown: Curves worth a plot.
        metric: The evaluations, if there were any.
        terms: Loss terms that do not go as the loss goes.
        health: Rows of the health table.
        groups: Events.
        causes: ``(label, text)`` of who is to blame.
        advice: In order.
        no_advice: What to say if there is none.
    """

    run: RunHistory
    found: Incidents
    judged: Judgement
    sentence: str
    checkpoint: str
    active: list[tuple[str, str]]
    shown: list[Quantity]
    health: list[Stretch]
    groups: list[Group]
    causes: list[tuple[str, str]]
    advice: list[Advice]
    no_advice: str = NOTHING_TO_CHANGE
    metric: Quantity | None = None
    terms: dict[str, Curve] = field(default_factory=dict)

    def table(self) -> list[list[str]]:
        """The health table with its head, as text."""
        head = ["iterations", *(q.short for q in self.shown)]
        head += ["not finite", "overflows", "rollbacks"]
        rows = [
            [
                f"{s.first}-{s.last}" if s.first < s.last else f"{s.first}",
                *(q.written(v) for q, v in zip(self.shown, s.worst)),
                s.bad,
                str(s.overflows),
                str(s.rollbacks),
            ]
            for s in self.health
        ]
        return [head, *rows]

    def bad_cells(self) -> list[list[bool]]:
        """Which cells of the table's rows to mark; the head has none."""
        return [
            [
                False,
                *(
                    q.is_bad(v) or (q.short in ("loss", "health") and s.ill)
                    for q, v in zip(self.shown, s.worst)
                ),
                s.bad != "0",
                False,
                s.rollbacks > 0,
            ]
            for s in self.health
        ]


def make_page(run: RunHistory) -> Page:
    """Draw the conclusions."""
    found = find(run)
    judged = judge(run, found)
    causes = find_causes(run, found)
    advice = advise(run, found, causes, judged)
    shown = quantities(run)
    return Page(
        run=run,
        found=found,
        judged=judged,
        sentence=verdict_sentence(run, found, judged, advice),
        checkpoint=_checkpoint(run, judged),
        active=describe(run, found),
        shown=shown,
        health=stretches(found, shown),
        groups=group(run.happenings),
        causes=causes.lines(),
        advice=advice,
        no_advice=NOTHING_TO_CHANGE if _was_well(run, found, judged) else NO_ADVICE,
        metric=metric(run),
        terms=differing_terms(run),
    )


def _was_well(run: RunHistory, found: Incidents, judged: Judgement) -> bool:
    """Whether it may be said that there is nothing to change."""
    aborted = [h for h in run.having("abort") if not stopped_by_hand(h.line)]
    lost = judged.status is Status.LOST
    failed = run.having("failure", lost=False)
    told = aborted or failed or found.divergences or last_abort(run)
    return not (lost or told or never_alive(run))


def verdict_sentence(
    run: RunHistory, found: Incidents, judged: Judgement, advice: list[Advice]
) -> str:
    """Status, what happened, what to do first."""
    total = found.last - found.first + 1
    end = _unfinished(run, found)
    faults = run.having("fault")
    injected = (
        f"FaultInjectionHook did damage on purpose ({count(len(faults), 'time')})"
        + ("; the advice takes it for real." if advice else ".")
        if faults and judged.status is not Status.HEALTHY
        else ""
    )
    first = f"First: {_lower(advice[0].title)}." if advice else ""
    if judged.status is Status.HEALTHY:
        some = f", {count(len(found.overflows), 'gradient overflow')}"
        what = f"{count(total, 'iteration')}{some * bool(len(found.overflows))}"
        nothing = NOTHING_TO_CHANGE * _was_well(run, found, judged)
        passing = _no_harm(run), _watched(run), _failed(run), _never_alive(run)
        return _join(f"Healthy: {what}, nothing lost.", *passing, end, nothing)
    if judged.status is Status.RECOVERED:
        what = f"Recovered: {'; '.join(judged.reasons)}. "
        n = found.healthy_since
        what += (
            f"The last {count(n, 'iteration')} were healthy."
            if n
            else "The last iteration is one of them."
        )
    else:
        what = f"Lost: {'; '.join(judged.reasons)}."
    passing = _no_harm(run), _watched(run), _failed(run), _never_alive(run)
    return _join(what, injected, *passing, _metric(run), end, first)


def _checkpoint(run: RunHistory, judged: Judgement) -> str:
    """The last good one of a lost run, unless the line of its end names it."""
    snapshots = run.having("snapshot", lost=False)
    named = any("checkpoint" in h.line for h in run.having("abort"))
    if judged.status is not Status.LOST or named or not snapshots:
        return ""
    return str(snapshots[-1].line.get("file", ""))


def _join(*sentences: str) -> str:
    return " ".join(s.strip() for s in sentences if s.strip())


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _no_harm(run: RunHistory) -> str:
    """Of loss terms that were not finite over finite gradients."""
    lines = run.having("nan_term", lost=False)
    terms = sorted({term for h in lines for term in h.names("losses")})
    if not terms:
        return ""
    return f"Not finite and no harm: {first_names(terms)}."


def _never_alive(run: RunHistory) -> str:
    """Of evaluations that never found anything; numbers do not tell why."""
    dead = never_alive(run)
    if dead is None:
        return ""
    return (
        f"But {dead}: check-config, or AmpPreflightHook at the start, looks for the "
        "usual reasons (classes, labels, the learning rate)."
    )


def _watched(run: RunHistory) -> str:
    """Whether the loss had left its range when the run ended."""
    lines = run.having("watch", "diverged", "rollback", "well", lost=False)
    if not lines or lines[-1].event != "watch":
        return ""
    return (
        f"Watched at the end (iteration {lines[-1].iter}: {lines[-1].line.get('why')})."
    )


def _failed(run: RunHistory) -> str:
    """What of amp_hooks itself failed, and has watched over nothing since."""
    lines = run.having("failure", lost=False)
    parts = [f"{h.line.get('part')} (iteration {h.iter})" for h in lines]
    return f"Failed, and off since: {', '.join(parts)}." if parts else ""


def _metric(run: RunHistory) -> str:
    last = last_metric(run)
    return f"Last {last[0]}: {last[1]:.3f}." if last else ""


def _unfinished(run: RunHistory, found: Incidents) -> str:
    """Whether it stopped before its time; nothing if that is not known."""
    start_line = run.start_line or {}
    planned = start_line.get("max_iters") or dig(run.config, "train_cfg", "max_iters")
    if not isinstance(planned, int) or found.last + 1 >= planned:
        return ""
    if (abort := last_abort(run)) is not None:
        by_hand = f"It has not ended: {abort.get('error')} in iteration {abort['iter']}"
        return f"{by_hand}; {planned} were planned." if stopped_by_hand(abort) else ""
    if run.starts and any(x["event"] == "end" for x in run.starts[-1].lines):
        return ""
    return (
        f"It has not ended: {found.last + 1} of {planned} iterations are done, so it "
        "was stopped or is still running."
    )
