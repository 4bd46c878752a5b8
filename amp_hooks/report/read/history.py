"""A run as plain data: what its files tell, several resumed starts as one."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any

from ...engine.words import Line
from .curves import EMPTY, Curve

NO_ITERATION = ("start", "resume", "end")  # their iter is not one that was trained


@dataclass(frozen=True)
class Validation:
    """One evaluation.

    Attributes:
        iter: The last training iteration before it, 0-based.
        metrics: Its numbers; empty where mmdet found nothing to evaluate.
    """

    iter: int
    metrics: dict[str, float]


@dataclass
class Start:
    """What one start of training left in ``<work_dir>/<timestamp>/``.

    Attributes:
        name: The folder's name.
        lines: Of the ledger; none if there is none.
        curves: By the name of the scalar, without ``train/``.
        validations: In their order.
        config: As MMEngine dumped it; empty if it could not be read.
    """

    name: str
    lines: list[Line] = field(default_factory=list)
    curves: dict[str, Curve] = field(default_factory=dict)
    validations: list[Validation] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def watched(self) -> bool:
        """Whether hooks of this package were attached."""
        return bool(self.lines) or any(c.startswith("amp/") for c in self.curves)

    @property
    def complete_until(self) -> float:
        """Before this iteration the ledger has every bad iteration."""
        full = [int(x["iter"]) for x in self.lines if x["event"] == "truncated"]
        return min(full, default=math.inf if self.lines else 0)

    @property
    def start_line(self) -> Line | None:
        """The ledger's ``start`` line."""
        return next((x for x in self.lines if x["event"] == "start"), None)

    @property
    def begins(self) -> int:
        """Its first iteration; the first one that was logged, if nothing else tells."""
        for line in self.lines:
            if line["event"] in ("start", "resume"):
                return int(line["iter"])
        firsts = [int(c.iters[0]) for c in self.curves.values() if len(c)]
        firsts += [int(x["iter"]) for x in self.lines[:1]]
        return min(firsts, default=0)


@dataclass(frozen=True)
class Checkpoint:
    """What the newest checkpoint tells.

    Attributes:
        path: The file.
        iter: Iterations that were done when it was written.
        saved: When, as in MMEngine's folder names; empty if it does not say.
        curves: One value for each iteration: ``loss``, ``lr``, ``grad_norm``; none
            where its history cannot be told from the iterations.
        scale: The loss scale, the least of several; ``None`` without a GradScaler.
        growth: Clean steps since the loss scale changed.
        nonfinite: Weights in it that are not finite.
    """

    path: str
    iter: int
    saved: str = ""
    curves: dict[str, Curve] = field(default_factory=dict)
    scale: float | None = None
    growth: int = 0
    nonfinite: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Happening:
    """A line of the ledger.

    Attributes:
        line: As written.
        lost: A later start went on from before it, so its effect is not in the weights.
    """

    line: Line
    lost: bool = False

    @property
    def iter(self) -> int:
        """Its iteration."""
        return int(self.line["iter"])

    @property
    def event(self) -> str:
        """Its kind."""
        return str(self.line["event"])

    def names(self, field: str) -> list[str]:
        """A field's items or keys as text; none if it is missing or holds none."""
        value = self.line.get(field)
        return list(map(str, value)) if isinstance(value, (list, tuple, dict)) else []

    def number(self, field: str, default: float) -> float:
        """A field's value; the default if it is missing or no number.

        The ledger has NaN and infinities as strings.
        """
        try:
            return float(self.line.get(field))  # type: ignore[arg-type]
        except (TypeError, ValueError):
            return default


@dataclass
class RunHistory:
    """A run, from its first iteration to its last.

    Attributes:
        work_dir: Where it was read from.
        starts: Those that belong to it, in their order.
        happenings: The ledgers' lines in their order.
        curves: By name; what a later start did again is there once.
        validations: In their order.
        checkpoint: The newest one, if it was read.
        exact_until: Before this iteration ``curves['loss']`` has the loss of every
            iteration; from it on, MMEngine's means over several.
        notes: What could not be read, for the reader of the report.
    """

    work_dir: str
    starts: list[Start]
    happenings: list[Happening] = field(default_factory=list)
    curves: dict[str, Curve] = field(default_factory=dict)
    validations: list[Validation] = field(default_factory=list)
    checkpoint: Checkpoint | None = None
    exact_until: int = 0
    notes: list[str] = field(default_factory=list)

    def curve(self, *names: str) -> Curve:
        """The first of these curves that the run has, else an empty one."""
        return next((self.curves[n] for n in names if n in self.curves), EMPTY)

    def layers(self, stem: str) -> dict[str, Curve]:
        """Curves of single layers: ``<stem>/<module path>``, by module path."""
        return {
            name[len(stem) + 1 :]: curve
            for name, curve in self.curves.items()
            if name.startswith(stem + "/")
        }

    def having(self, *events: str, lost: bool = True) -> list[Happening]:
        """The lines of these events; without those that were lost, if asked."""
        return [
            h for h in self.happenings if h.event in events and (lost or not h.lost)
        ]

    @property
    def watched(self) -> bool:
        """Whether hooks of this package were attached in any start."""
        return any(start.watched for start in self.starts)

    @property
    def config(self) -> dict[str, Any]:
        """Of the last start that has one."""
        return next((s.config for s in reversed(self.starts) if s.config), {})

    @property
    def start_line(self) -> Line | None:
        """The ``start`` line of the last start that has one."""
        return next((s.start_line for s in reversed(self.starts) if s.start_line), None)


def last_training(starts: list[Start]) -> list[Start]:
    """The starts that belong to the last training in the folder.

    One that begins where the very first did, or before, resumed nothing: it is a
    training of its own, or repeats one that was killed before it could be saved.
    """
    first = 0
    for i, start in enumerate(starts):
        if start.begins <= starts[first].begins:
            first = i
    return starts[first:]


def merge(
    work_dir: str,
    starts: list[Start],
    checkpoint: Checkpoint | None = None,
    notes: list[str] | None = None,
) -> RunHistory:
    """Read several starts as one run.

    What a start did at or after the iteration where a later one began was done again:
    its points are dropped, its events are kept and marked as lost.
    """
    notes = list(notes or [])
    run = RunHistory(work_dir, last_training(starts), notes=notes)
    if left_out := len(starts) - len(run.starts):
        notes.append(
            f"{left_out} earlier start{'s' * (left_out > 1)} in this folder, up to "
            f"{starts[left_out - 1].name}, {'are' if left_out > 1 else 'is'} not part "
            "of this report: training began anew after."
        )
    for i, start in enumerate(run.starts):
        end = min((s.begins for s in run.starts[i + 1 :]), default=float("inf"))
        for line in start.lines:
            lost = int(line["iter"]) >= end and line["event"] not in NO_ITERATION
            run.happenings.append(Happening(line, lost))
        for name, curve in start.curves.items():
            kept = curve.within(0, end)
            run.curves[name] = run.curve(name).then(kept)
        run.validations += [v for v in start.validations if v.iter < end]
    if checkpoint and not _of_this_run(checkpoint, run):
        notes.append(
            f"{checkpoint.path} was written before this training began and is not read."
        )
    elif checkpoint:
        run.checkpoint = checkpoint
        for name, curve in checkpoint.curves.items():
            run.curves[name] = curve.then(
                run.curve(name).within(checkpoint.iter, math.inf)
            )
        run.exact_until = checkpoint.iter if "loss" in checkpoint.curves else 0
    return run


def _of_this_run(checkpoint: Checkpoint, run: RunHistory) -> bool:
    # MMEngine names folders and stamps checkpoints by the same clock, in one format.
    stamps = [checkpoint.saved, *(s.name for s in run.starts[:1])]
    known = len(stamps) == 2 and all(re.fullmatch(r"\d{8}_\d{6}", s) for s in stamps)
    return not known or stamps[0] >= stamps[1]
