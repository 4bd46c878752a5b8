"""Read the scalars of one start, from MMEngine's JSON or from TensorBoard's files."""

from __future__ import annotations

import json
from bisect import bisect
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Dict, List, Tuple

from ...engine.words import without_prefix
from .curves import Curve
from .history import Validation

Points = Dict[str, List[Tuple[int, float]]]
_NOT_CURVES = ("step", "iter")
_NOT_METRICS = (*_NOT_CURVES, "epoch", "time", "data_time", "memory")


def json_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The objects of a JSON-lines file, and how many other lines it has.

    NaN and Infinity are read, although they are not JSON: LocalVisBackend writes them.
    The last line may be cut short by a kill.
    """
    found, broken = [], 0
    with open(path, encoding="utf-8", errors="replace") as f:
        for text in f:
            try:
                line = json.loads(text)
            except ValueError:
                line = None
            if isinstance(line, dict):
                found.append(line)
            else:
                broken += bool(text.strip())
    return found, broken


def _numbers(line: dict[str, Any], leave_out: Iterable[str]) -> dict[str, float]:
    return {
        key: float(value)
        for key, value in line.items()
        if key not in leave_out
        and isinstance(value, (int, float))
        and not isinstance(value, bool)
    }


def from_lines(
    lines: Iterable[dict[str, Any]],
) -> tuple[dict[str, Curve], list[Validation]]:
    """Curves and validations of ``scalars.json``.

    MMEngine writes a training line with ``iter`` at ``step = iteration + 1``, and this
    package ``amp/*`` at the same. The step of a validation is an epoch or an iteration,
    so its place in the file tells when it was.
    """
    points: Points = defaultdict(list)
    validations = []
    now = -1
    for line in lines:
        step = line.get("step")
        if not isinstance(step, int):
            continue
        if "iter" in line or any(key.startswith("amp/") for key in line):
            now = step - 1
            for name, value in _numbers(line, _NOT_CURVES).items():
                points[without_prefix(name, "train/")].append((now, value))
        elif any(key.endswith("time") for key in line):
            metrics = {
                without_prefix(name, "val/"): value
                for name, value in _numbers(line, ()).items()
                if without_prefix(name, "val/") not in _NOT_METRICS
            }
            validations.append(Validation(max(now, 0), metrics))
    return {name: Curve.of(p) for name, p in points.items()}, validations


def from_tensorboard(
    folder: Path,
) -> tuple[dict[str, Curve], list[Validation]]:
    """The same from TensorBoard's event files, placed by their wall clock.

    Raises:
        ImportError: tensorboard is not installed.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    points: dict[str, list[Any]] = defaultdict(list)
    for path in sorted(folder.rglob("events.out.tfevents*")):
        events = EventAccumulator(str(path), size_guidance=dict(scalars=0))
        events.Reload()
        for tag in events.Tags()["scalars"]:
            points[without_prefix(tag, "train/")] += events.Scalars(tag)
    # Every training line has the step of a loss or a learning rate.
    clock = [
        (e.wall_time, e.step)
        for tag, found in points.items()
        if tag == "loss" or tag.endswith("lr")
        for e in found
    ]
    steps = {step for _, step in clock}
    clock.sort()
    curves: dict[str, Curve] = {}
    validated: dict[int, dict[str, float]] = defaultdict(dict)
    for tag, found in points.items():
        if tag.startswith("amp/") or any(e.step in steps for e in found):
            curves[tag] = Curve.of((e.step - 1, e.value) for e in found)
        elif tag not in _NOT_METRICS:
            for e in found:
                before = bisect(clock, (e.wall_time, float("inf")))
                now = clock[before - 1][1] - 1 if before else 0
                validated[now][without_prefix(tag, "val/")] = e.value
    return curves, [Validation(i, validated[i]) for i in sorted(validated)]
