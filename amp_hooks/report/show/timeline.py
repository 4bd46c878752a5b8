"""What happened, for somebody who was not there: dates, epochs, durations."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from ...engine.words import count, places
from ..judge.incidents import Incidents
from ..read.history import Happening, RunHistory
from .clock import Clock, lasting
from .groups import Group

# What a run does as long as it is well; the list of all events has it.
_ROUTINE = {"snapshot", "boxes", "replaced", "recover", "bad_batch", "veto"}
_MOST = 30


@dataclass(frozen=True)
class Row:
    """A line of the timeline.

    Attributes:
        iter: Its first iteration.
        where: ``iteration 16``.
        when: Date and time; empty if they are not known.
        epoch: From 1; ``None`` in a loop by iterations.
        took: How long it lasted, or took to be over.
        text: What happened.
        lost: A kill took it back.
        link: To the incident's folder; empty if there is none any more.
    """

    iter: int
    where: str
    when: str
    epoch: int | None
    took: str
    text: str
    lost: bool = False
    link: str = ""


class Timeline:
    """The rows of a run.

    Attributes:
        rows: At most 30, the first and the last ones.
        hidden: How many there are between those.
    """

    def __init__(
        self,
        run: RunHistory,
        found: Incidents,
        groups: list[Group],
        clock: Clock,
        beside: Path | None,
    ) -> None:
        self._run, self._clock, self._beside = run, clock, beside
        # Ill until a rollback, until it was well again, or to the end.
        self._ill = {d.told: d.until or found.last + 1 for d in found.divergences}
        rows = [self._row(group) for group in groups if not _is_routine(group)]
        if not rows:
            rows = [self._bare(*span) for span in _spans(found)]
        self.hidden = max(len(rows) - _MOST, 0)
        half = _MOST // 2
        self.rows = [*rows[:half], *rows[-half:]] if self.hidden else rows
        self.first = half if self.hidden else len(rows)

    def _row(self, group: Group) -> Row:
        happening = group.happenings[-1]
        folders = [h for h in group.happenings if h.event == "forensics"]
        folder = str(folders[0].line.get("folder") or "") if folders else ""
        first = group.happenings[0].iter
        return Row(
            first,
            group.where,
            self._when(first),
            self._clock.epoch(first),
            self._took(group),
            _short(happening) or group.text,
            group.lost,
            link_to(folder, self._run, self._beside),
        )

    def _bare(self, text: str, first: int, last: int) -> Row:
        """Of a run without a ledger."""
        where = places(range(first, last + 1))
        took = self._lasting(first, last + 1)
        epoch = self._clock.epoch(first)
        return Row(first, where, self._when(first), epoch, took, text)

    def _when(self, iteration: int) -> str:
        at = self._clock.at(iteration)
        return f"{at:%Y-%m-%d %H:%M:%S}" if at else ""

    def _took(self, group: Group) -> str:
        first, last = group.happenings[0], group.happenings[-1]
        since = last.number("since", first.iter)
        # Of iterations, the last one counts; of what came to its end, it does not.
        end = last.iter + (last.event in ("overflow", "veto", "bad_batch", "end"))
        begin = int(since) if 0 <= since <= first.iter else first.iter
        if last.event == "end":
            begin = 0
        elif last.event == "diverged":
            end = self._ill.get(last.iter, end)
        return self._lasting(begin, end)

    def _lasting(self, begin: int, end: int) -> str:
        if end - begin < 2:
            return ""
        text = count(end - begin, "iteration")
        seconds = self._clock.between(begin, end)
        return f"{text}, {lasting(seconds)}" if seconds is not None else text


def _is_routine(group: Group) -> bool:
    if all(h.line.get("verdict") == "SCALE_OVERFLOW" for h in group.happenings):
        return {h.event for h in group.happenings} <= _ROUTINE | {"overflow"}
    events = {h.event for h in group.happenings}
    return events <= _ROUTINE and "bad_batch" not in events


def _short(happening: Happening) -> str:
    """Of the lines that are long because they name what the set-up has as well."""
    if happening.event != "start":
        return ""
    planned = happening.line.get("max_iters")
    how = "goes on" if happening.iter else "begins"
    return f"Training {how}; {planned} iterations are planned."


def _spans(found: Incidents) -> Iterator[tuple[str, int, int]]:
    for first, last in found.streaks:
        yield "Not finite.", first, last
    if len(found.poisoned) and not found.streaks:
        first, last = int(found.poisoned[0]), int(found.poisoned[-1])
        yield "The logged loss was not finite.", first, last
    for d in found.divergences:
        yield "The run had left its healthy range.", d.since, d.until or found.last


def link_to(folder: str, run: RunHistory, beside: Path | None) -> str:
    """A relative link to a folder of the run, from the page's own folder.

    What the ledger says is a name and no more: only a folder that is within the run's
    is linked, where the run lies today.

    Args:
        folder: As in the ledger, of the machine and the place where it was written.
        run: Whose ledger.
        beside: Where the page is; without it there are no links.
    """
    if not folder or beside is None:
        return ""
    work_dir = Path(run.work_dir).resolve()
    parts = Path(folder).parts
    for start in run.starts:
        if start.name in parts:
            inner = parts[parts.index(start.name) :]
            path = work_dir.joinpath(*inner).resolve()
            if work_dir in path.parents and path.is_dir():
                try:
                    relative = os.path.relpath(path, beside.resolve())
                except ValueError:  # on another drive
                    return ""
                return "./" + quote(Path(relative).as_posix()) + "/"
    return ""
