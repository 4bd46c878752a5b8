"""How many kernels and copies the suite adds to an iteration."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bench_counts import KEYS, count

from gpu_check import runs
from gpu_check.machine import Card
from gpu_check.rows import UNKNOWN, Row, judged


def check(machine: Card, place: Path) -> Iterator[Row]:
    """Of detectors of one and of two stages, by the profiler."""
    iterations = machine.pick(5, 1)
    unit = "launches" if machine.rehearsed else "kernels"
    for detector in ("retinanet", "faster_rcnn"):
        size = machine.pick((320, 2), (64, 1))
        make = runs.standing(machine, place, *size, "float16", detector)
        lives = make([]), make(runs.EACH_ITERATION)
        yield verdict(detector, unit, *(count(live, iterations) for live in lives))


def verdict(
    detector: str, unit: str, without: dict[str, float], with_: dict[str, float]
) -> Row:
    """A clean iteration has one packed copy more, and no collective."""
    what = f"launches and copies in an iteration, {detector}"
    if not without["launches"]:
        return Row(what, "the profiler sees nothing of the device", UNKNOWN)
    more = {key: round(with_[key] - without[key], 2) for key in KEYS}
    found = (
        f"{without['launches']:g} {unit} without, {more['launches']:g} more with the "
        f"suite; {more['copies']:g} copies to the host more, "
        f"{more['collectives']:g} collectives"
    )
    good = more["copies"] <= 1 and more["collectives"] == 0
    return judged(what, found, good, without=without, with_suite=with_)
