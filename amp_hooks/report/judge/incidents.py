"""What happened in a run: its bad iterations, and what was done about them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ...engine.config_values import dig
from ...engine.verdict import Verdict
from ...monitor.skips import PATIENCE as COLLAPSE_SKIPS
from ..read.curves import EMPTY, Array, Curve
from ..read.history import NO_ITERATION, Happening, RunHistory
from .divergence import Divergence, divergences


@dataclass(frozen=True)
class Incidents:
    """What is certain of a run's iterations; 0-based, rising arrays of integers.

    Attributes:
        first: The first iteration that is known of.
        last: The last one.
        bad: Loss, logits, gradients or weights were not finite and no loss scale cures
            that, or the step raised.
        overflows: Only scaled gradients overflowed: GradScaler's ordinary business.
        collapses: Those of them that no loss scale helps against.
        undone: Iterations that left no trace: refused or rolled back.
        poisoned: Where all that is known is MMEngine's mean of the loss over the last
            ``mean_over`` iterations: points at which it was not finite.
        poisoned_to_end: The last mean is one of them.
        mean_over: Iterations in that mean.
        step_every: So many iterations accumulate gradients for a step.
        rollbacks: Iterations of rollbacks.
        clamps: Iterations where the head clamp switched on.
        lost_bad: Bad iterations that a kill took back, with all they did.
        divergences: When the run was ill, which is another thing: all was finite.
    """

    first: int = 0
    last: int = -1
    bad: Array = field(default_factory=lambda: _sorted([]))
    overflows: Array = field(default_factory=lambda: _sorted([]))
    collapses: Array = field(default_factory=lambda: _sorted([]))
    undone: frozenset[int] = frozenset()
    poisoned: Array = field(default_factory=lambda: _sorted([]))
    poisoned_to_end: bool = False
    mean_over: int = 10  # LogProcessor's default
    step_every: int = 1
    rollbacks: Array = field(default_factory=lambda: _sorted([]))
    clamps: Array = field(default_factory=lambda: _sorted([]))
    lost_bad: Array = field(default_factory=lambda: _sorted([]))
    divergences: list[Divergence] = field(default_factory=list)

    @property
    def streaks(self) -> list[tuple[int, int]]:
        """First and last iteration of each row of bad ones."""
        if not len(self.bad):
            return []
        breaks = np.flatnonzero(np.diff(self.bad) > 1)
        firsts = self.bad[np.append(0, breaks + 1)]
        lasts = self.bad[np.append(breaks, len(self.bad) - 1)]
        return [(int(a), int(b)) for a, b in zip(firsts, lasts)]

    @property
    def first_bad(self) -> int | None:
        """The first bad iteration; of a poisoned mean, the one where it was shown."""
        found = [int(a[0]) for a in (self.bad, self.poisoned) if len(a)]
        return min(found, default=None)

    @property
    def onsets(self) -> list[int]:
        """First iterations of each row of bad ones, and of each divergence."""
        return sorted(
            [a for a, _ in self.streaks] + [d.since for d in self.divergences]
        )

    @property
    def ends_ill(self) -> Divergence | None:
        """The divergence that nothing ended."""
        last = self.divergences[-1] if self.divergences else None
        return None if last is None or last.until is not None else last

    @property
    def skipped_at_the_end(self) -> Array:
        """Iterations of the steps in a row, up to the last one, that were skipped."""
        ends = np.append(self.overflows, self.last + 1)
        taken = np.flatnonzero(np.diff(ends) > self.step_every)
        return self.overflows[taken[-1] + 1 if len(taken) else 0 :]

    @property
    def healthy_since(self) -> int:
        """Iterations at the end that were not bad, nor the run or its scale ill."""
        bad = [int(a[-1]) for a in (self.bad, self.poisoned, self.collapses) if len(a)]
        bad += [self.last if d.until is None else d.until for d in self.divergences]
        return self.last - max(bad, default=self.first - 1)


def _sorted(iterations: object) -> Array:
    return np.unique(np.array(list(iterations), dtype=np.int64))  # type: ignore[call-overload]


def _ends_of_skips(overflows: Array, step_every: int) -> set[int]:
    """Skips that are the last of so many in a row that they are a collapse."""
    ends, row = set(), 0
    for iteration, gap in zip(overflows.tolist(), np.diff(overflows, prepend=-np.inf)):
        row = row + 1 if gap <= step_every else 1
        if row >= COLLAPSE_SKIPS:
            ends.add(iteration)
    return ends


def _is_bad(happening: Happening) -> bool:
    """Whether it tells of something that was not finite: DIVERGED does not."""
    verdict = happening.line.get("verdict")
    not_finite = [v.value for v in Verdict if v.is_bad and v is not Verdict.DIVERGED]
    return happening.event == "overflow" and verdict in not_finite


def diverged(happening: Happening) -> bool:
    """Whether its verdict is on the run, and every number was finite."""
    return happening.line.get("verdict") == Verdict.DIVERGED.value


def _harmless(run: RunHistory, iteration: int, first: float) -> bool:
    """Whether a loss that was not finite did no harm.

    Args:
        run: Its ledgers tell.
        iteration: Which loss.
        first: The first iteration in which one did none.
    """
    if iteration < first:
        return False
    start = next((s for s in reversed(run.starts) if s.begins <= iteration), None)
    return start is not None and iteration < start.complete_until


def _kinds(happening: Happening) -> list[str]:
    """What LossScaleMonitorHook called a skipped step, of each optimizer."""
    skip = happening.line.get("skip")
    return list(map(str, skip.values())) if isinstance(skip, dict) else [str(skip)]


def last_iteration(run: RunHistory) -> int:
    """The last iteration that anything tells of; -1 if nothing does."""
    known = [h.iter for h in run.happenings if h.event not in NO_ITERATION]
    # An end line names the last iteration, but 0 also where none was trained.
    known += [h.iter for h in run.having("end") if h.iter]
    known += [int(c.iters[-1]) for c in run.curves.values() if len(c)]
    known += [run.checkpoint.iter - 1] if run.checkpoint else []
    return max(known, default=-1)


def _printed_only(run: RunHistory) -> Curve:
    """The means of the loss where neither a ledger nor a checkpoint knows more."""
    found = EMPTY
    for i, start in enumerate(run.starts):
        end = min((s.begins for s in run.starts[i + 1 :]), default=float("inf"))
        first = max(run.exact_until, start.begins, start.complete_until)
        if "loss" in start.curves:
            found = found.then(start.curves["loss"].within(first, end))
    return found


def _unexplained(poisoned: Array, bad: set[int], mean_over: int) -> Array:
    """Without the means that hold an iteration which is known to be bad."""
    return poisoned[~any_within(_sorted(bad), poisoned - mean_over + 1, poisoned)]


def any_within(iterations: Array, firsts: Array, lasts: Array) -> Array:
    """For each pair of bounds, whether any of the iterations is within them.

    Args:
        iterations: Rising.
        firsts: Lower bounds, shape ``(n,)``.
        lasts: Upper bounds, included, shape ``(n,)``.

    Returns:
        Booleans of shape ``(n,)``.
    """
    before = np.searchsorted(iterations, firsts, side="left")
    return np.searchsorted(iterations, lasts, side="right") > before


def find(run: RunHistory) -> Incidents:
    """Put together what ledger, scalars and checkpoint tell."""
    overflow_lines = run.having("overflow", lost=False)
    bad = {h.iter for h in overflow_lines if _is_bad(h)}
    exact = run.curve("loss").within(0, run.exact_until)
    # The ledger tells of each such term once, and of every iteration that was bad.
    terms = run.having("nan_term", lost=False)
    first_harmless = min((h.iter for h in terms), default=float("inf"))
    not_finite = set(exact.iters[~np.isfinite(exact.values)].tolist())
    bad |= {i for i in not_finite if not _harmless(run, i, first_harmless)}
    # A state found broken at a snapshot is rolled back without an overflow line.
    rollbacks = run.having("rollback", lost=False)
    bad |= {h.iter for h in rollbacks if not diverged(h)}
    overflows = _sorted({h.iter for h in overflow_lines if not diverged(h)} - bad)
    collapses = {
        h.iter
        for h in overflow_lines
        if not (_is_bad(h) or diverged(h))
        and ("collapse" in _kinds(h) or not h.number("scale", 2.0) > 1.0)
    }
    step_every = dig(run.config, "optim_wrapper", "accumulative_counts")
    if not isinstance(step_every, int) or step_every < 1:
        step_every = Incidents.step_every
    collapses |= _ends_of_skips(overflows, step_every)
    mean_over = dig(run.config, "log_processor", "window_size")
    if not isinstance(mean_over, int):
        mean_over = Incidents.mean_over
    printed = _printed_only(run)
    poisoned = _unexplained(printed.iters[~np.isfinite(printed.values)], bad, mean_over)
    # Only of the last start do the last means tell how the run ended.
    to_end = len(poisoned) > 0 and (
        poisoned[-1] == printed.iters[-1] >= run.starts[-1].begins
    )
    starts = [h.iter for h in run.having("start", "resume")][:1]
    lost = {h.iter for h in run.having("overflow") if h.lost and _is_bad(h)}
    return Incidents(
        first=min(starts, default=0),
        last=last_iteration(run),
        bad=_sorted(bad),
        overflows=overflows,
        collapses=_sorted(collapses),
        undone=frozenset(h.iter for h in run.having("veto", "rollback", lost=False)),
        poisoned=poisoned,
        poisoned_to_end=bool(to_end),
        mean_over=mean_over,
        step_every=step_every,
        rollbacks=_sorted(h.iter for h in rollbacks),
        clamps=_sorted(h.iter for h in run.having("clamp_on", lost=False)),
        lost_bad=_sorted(lost),
        divergences=divergences(run),
    )
