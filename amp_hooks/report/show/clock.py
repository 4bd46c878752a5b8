"""When an iteration was: date, epoch, and how long it took until then."""

from __future__ import annotations

from datetime import datetime, timedelta

import numpy as np

from ..read.curves import EMPTY, Curve
from ..read.history import RunHistory, Start

_UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
_LONGEST = 1e9  # seconds; a file may hold anything


def lasting(seconds: float) -> str:
    """``2 h 5 min``, ``18 s``: the two largest units."""
    left = max(int(round(seconds)), 0)
    parts: list[str] = []
    for size, unit in _UNITS:
        number, left = divmod(left, size)
        if number or parts:
            parts.append(f"{number} {unit}" if number else "")
    return " ".join(p for p in parts[:2] if p) or "under 1 s"


class Clock:
    """Dates and epochs of a run's iterations, as far as its files tell.

    The ledger has the time at which a start began and ended, in UTC; without it the
    folder's name has when it began, in local time. In between, the scalar ``time``
    (seconds of an iteration, a mean over some) says how far each iteration is.
    """

    def __init__(self, run: RunHistory) -> None:
        self._starts = run.starts
        self._laps = [_Laps(start) for start in run.starts]
        self._length = _epoch_length(run.curve("epoch"))

    @property
    def zone(self) -> str:
        """Of the dates; empty where it is not known."""
        known = [lap.begun for lap in self._laps if lap.begun is not None]
        return "UTC" if known and all(t.tzinfo for t in known) else ""

    def at(self, iteration: int) -> datetime | None:
        """When it was, to the precision of a mean; ``None`` if nothing tells."""
        lap = self._lap(iteration)
        if lap is None or lap.begun is None:
            return None
        after = lap.seconds(iteration)
        try:
            return None if after is None else lap.begun + timedelta(seconds=after)
        except OverflowError:  # begun at the end of time
            return None

    def between(self, first: int, last: int) -> float | None:
        """Seconds from one iteration to another, of one start."""
        lap = self._lap(first)
        if lap is None or lap is not self._lap(last):
            return None
        a, b = lap.seconds(first), lap.seconds(last)
        return None if a is None or b is None else b - a

    def trained(self, last: int) -> float | None:
        """Seconds of training in all, as far as they are known."""
        ends = [s.begins for s in self._starts[1:]] + [last + 1]
        known = [lap.seconds(end) for lap, end in zip(self._laps, ends)]
        return sum(k for k in known if k is not None) if any(known) else None

    def epoch(self, iteration: int) -> int | None:
        """As MMEngine counts them, from 1; ``None`` in a loop by iterations."""
        return iteration // self._length + 1 if self._length else None

    def _lap(self, iteration: int) -> _Laps | None:
        laps = [x for x in self._laps if x.first <= iteration]
        return laps[-1] if laps else None


class _Laps:
    """One start: seconds since it began, over its iterations."""

    def __init__(self, start: Start) -> None:
        self.first = start.begins
        line = start.start_line
        self.begun = _parsed(line.get("time")) if line else None
        if self.begun is None:
            self.begun = _of_folder(start.name)
        time = start.curves.get("time", EMPTY).finite
        time = time.within(self.first, np.inf)
        iters = np.append(self.first, time.iters + 1)
        seconds = np.cumsum(np.append(0.0, np.diff(iters) * np.abs(time.values)))
        if ended := self._ended(start):
            last, total = ended
            # Evaluations are in no mean: what is missing is spread over all.
            if len(time) and seconds[-1] > 0 and last >= iters[-1]:
                reach = (last - iters[0]) / (iters[-1] - iters[0])
                seconds = seconds * (total / (seconds[-1] * reach))
            if last > iters[-1]:
                iters, seconds = np.append(iters, last), np.append(seconds, total)
        self._iters, self._seconds = iters, seconds

    def seconds(self, iteration: int) -> float | None:
        """Since the beginning, until this iteration began."""
        if len(self._iters) < 2:
            return 0.0 if iteration == self.first else None
        found = float(np.interp(iteration, self._iters, self._seconds))
        return found if 0 <= found < _LONGEST else None

    def _ended(self, start: Start) -> tuple[int, float] | None:
        """Iterations until its end, and seconds."""
        ends = [x for x in start.lines if x["event"] == "end"]
        end = _parsed(ends[-1].get("time")) if ends else None
        if end is None or self.begun is None or not (end.tzinfo and self.begun.tzinfo):
            return None
        seconds = (end - self.begun).total_seconds()
        last = int(ends[-1]["iter"]) + 1
        return (last, seconds) if seconds > 0 and last > self.first else None


def _epoch_length(epochs: Curve) -> int | None:
    """Iterations of an epoch, from those at which its number was logged."""
    epochs = epochs.finite
    epochs = Curve(epochs.iters[epochs.values >= 1], epochs.values[epochs.values >= 1])
    if not len(epochs):
        return None
    # (epoch - 1) * length <= iteration < epoch * length, at every point.
    shortest = int(np.max(epochs.iters // epochs.values)) + 1
    later = epochs.values > 1
    most = epochs.iters[later] // (epochs.values[later] - 1)
    longest = int(most.min()) if later.any() else 0
    return max(shortest, 1) if not longest or shortest <= longest else None


def _parsed(text: object) -> datetime | None:
    try:
        return datetime.fromisoformat(str(text))
    except ValueError:
        return None


def _of_folder(name: str) -> datetime | None:
    try:
        return datetime.strptime(name, "%Y%m%d_%H%M%S")
    except ValueError:
        return None
