"""The content of a report, whatever it is shown on."""

from __future__ import annotations

from dataclasses import dataclass

from ...engine.config_values import dig
from ...engine.words import count
from ..judge.advise import advise
from ..judge.causes import find_causes
from ..judge.change import Advice
from ..judge.incidents import Incidents, find
from ..judge.status import Judgement, Status, judge, main_metric
from ..read.history import RunHistory
from .active import describe
from .groups import Group, group
from .health import Quantity, Stretch, number, quantities, stretches

NO_LEDGER = "No stability.jsonl: hooks of amp_hooks would have written one."
NOTHING_TO_CHANGE = "Nothing to change."


@dataclass(frozen=True)
class Page:
    """Everything a report says.

    Attributes:
        run: What was read.
        found: What happened.
        judged: How it ended.
        sentence: Verdict, what happened, what to do first.
        active: ``(label, text)`` of what was active.
        shown: Curves worth a plot.
        health: Rows of the health table.
        groups: Events.
        causes: ``(label, text)`` of who is to blame.
        advice: In order.
    """

    run: RunHistory
    found: Incidents
    judged: Judgement
    sentence: str
    active: list[tuple[str, str]]
    shown: list[Quantity]
    health: list[Stretch]
    groups: list[Group]
    causes: list[tuple[str, str]]
    advice: list[Advice]

    def table(self) -> list[list[str]]:
        """The health table with its head, as text."""
        head = ["iterations", *(q.short for q in self.shown)]
        head += ["not finite", "overflows", "rollbacks"]
        rows = [
            [
                f"{s.first}-{s.last}" if s.first < s.last else f"{s.first}",
                *map(number, s.worst),
                s.bad,
                str(s.overflows),
                str(s.rollbacks),
            ]
            for s in self.health
        ]
        return [head, *rows]


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
        active=describe(run, found),
        shown=shown,
        health=stretches(found, shown),
        groups=group(run.happenings),
        causes=causes.lines(),
        advice=advice,
    )


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
        some = f", {count(len(found.overflows), 'ordinary overflow')}"
        what = f"{count(total, 'iteration')}{some * bool(len(found.overflows))}"
        return _join(f"Healthy: {what}, nothing lost.", end, NOTHING_TO_CHANGE)
    if judged.status is Status.RECOVERED:
        what = f"Recovered: {'; '.join(judged.reasons)}. "
        what += f"The last {count(found.healthy_since, 'iteration')} were healthy."
    else:
        what = f"Lost: {'; '.join(judged.reasons)}."
        snapshots = run.having("snapshot", lost=False)
        if snapshots and not run.having("abort"):  # which names it itself
            what += f" Last good checkpoint: {snapshots[-1].line.get('file')}."
    return _join(what, injected, _metric(run), end, first)


def _join(*sentences: str) -> str:
    return " ".join(s.strip() for s in sentences if s.strip())


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _metric(run: RunHistory) -> str:
    name = main_metric(run)
    values = [v.metrics[name] for v in run.validations if name in v.metrics]
    return f"Last {name}: {values[-1]:.3f}." if values else ""


def _unfinished(run: RunHistory, found: Incidents) -> str:
    """Whether it stopped before its time; nothing if that is not known."""
    start_line = run.start_line or {}
    planned = start_line.get("max_iters") or dig(run.config, "train_cfg", "max_iters")
    if not isinstance(planned, int) or found.last + 1 >= planned:
        return ""
    if run.starts and any(x["event"] in ("end", "abort") for x in run.starts[-1].lines):
        return ""
    return (
        f"It has not ended: iteration {found.last} of {planned}, so it was stopped or "
        "is still running."
    )
