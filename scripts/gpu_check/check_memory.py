"""How much of the card's memory the suite takes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from gpu_check import runs
from gpu_check.machine import Card
from gpu_check.rows import Row


def check(machine: Card, place: Path) -> Iterator[Row]:
    """The peak of an iteration, without and with."""
    size, batch = machine.pick((640, 2), (64, 1))
    for precision in ("float32", "float16"):
        make = runs.standing(machine, place, size, batch, precision)
        peaks = []
        # In this order: what the second run holds between iterations is its own.
        for hooks in ([], runs.EACH_ITERATION):
            live = make(hooks)
            peaks.append(machine.peak_memory(lambda live=live: live.run(2)))
        mib = [peak / 2**20 for peak in peaks]
        found = f"{mib[0]:.0f} MiB without, {mib[1] - mib[0]:+.1f} MiB with the suite"
        what = f"peak memory ({size} pixels, batch {batch}, {precision})"
        yield Row(what, found, numbers=dict(bytes=peaks))
        del live, make
