"""What an iteration takes with the suite, where nothing waits but what has to."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from statistics import median, quantiles

import torch
from bench_runs import Live

from gpu_check import runs
from gpu_check.machine import Card
from gpu_check.rows import UNKNOWN, Row

SECONDS = 35.0  # for each case


def check(machine: Card, place: Path) -> Iterator[Row]:
    """Bound by launches, and bound by the GPU."""
    for name, (size, batch), iterations in (
        ("bound by launches", machine.pick((320, 2), (64, 1)), 10),
        ("bound by the GPU", machine.pick((800, 8), (96, 2)), 5),
    ):
        while batch:
            try:
                yield _case(machine, place, name, size, batch, iterations)
                break
            except torch.cuda.OutOfMemoryError:
                batch //= 2
            gc.collect()  # a runner is a circle
            torch.cuda.empty_cache()
        else:
            yield Row(f"time, {name}", f"no memory for {size} pixels", UNKNOWN)


def _case(
    machine: Card, place: Path, name: str, size: int, batch: int, iterations: int
) -> Row:
    make = runs.standing(machine, place, size, batch, "float16")
    lives = make([]), make(runs.EACH_ITERATION)
    iterations = machine.pick(iterations, 1)
    times = alternate(machine, lives, iterations, machine.pick(SECONDS, 0.0))
    return row(name, size, batch, iterations, times)


def alternate(
    machine: Card, lives: tuple[Live, Live], iterations: int, seconds: float
) -> list[tuple[float, float]]:
    """Seconds an iteration of both, in turn, the order swapped each time."""
    times: list[tuple[float, float]] = []
    end = machine.clock() + seconds
    while len(times) < 4 or (machine.clock() < end and len(times) < 40):
        pair = [0.0, 0.0]
        for i in (0, 1) if len(times) % 2 else (1, 0):
            pair[i] = lives[i].block(iterations)
        times.append((pair[0], pair[1]))
    return times


def row(
    name: str,
    size: int,
    batch: int,
    iterations: int,
    times: list[tuple[float, float]],
) -> Row:
    """Of the seconds without and with, block by block."""
    ratios = [b / a for a, b in times]
    low, middle, high = quantiles(ratios, n=4, method="inclusive")
    ms = [median(side) * 1e3 for side in zip(*times)]
    found = (
        f"{ms[0]:.2f} ms without, {ms[1]:.2f} ms with; ratio {middle:.3f} "
        f"({low:.3f} to {high:.3f}), {len(times)} pairs of blocks of {iterations}"
    )
    what = f"time, {name} ({size} pixels, batch {batch}, FP16)"
    numbers = dict(ms=ms, ratio=middle, quartiles=[low, high], blocks=times)
    return Row(what, found, numbers=numbers)
