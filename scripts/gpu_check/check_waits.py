"""How often the host waits for the device, and which of our lines make it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from bench_counts import count

from gpu_check import runs
from gpu_check.machine import Card
from gpu_check.rows import UNKNOWN, Row, judged
from gpu_check.sites import is_ours

# The recorder's copy of all that was measured, and in FP32 StepGuardHook's verdict on
# the gradients, for which AMP waits itself.
ALLOWED = {"float32": 2, "float16": 1}


def check(machine: Card, place: Path) -> Iterator[Row]:
    """By torch's own warnings, and by the profiler."""
    iterations = machine.pick(10, 2)
    for precision, allowed in ALLOWED.items():
        make = runs.standing(
            machine, place, *machine.pick((320, 2), (64, 1)), precision
        )
        plain, suite = make([]), make(runs.EACH_ITERATION)
        without, with_ = (
            per_iteration(
                machine.waits(lambda live=live: live.run(iterations)), iterations
            )
            for live in (plain, suite)
        )
        profiled = [count(live, iterations) for live in (plain, suite)]
        yield added(precision, without, with_, allowed)
        yield cross_check(precision, without, with_, profiled)


def per_iteration(found: Counter[str], iterations: int) -> dict[str, float]:
    """Of a number of iterations."""
    return {site: number / iterations for site, number in found.items()}


def added(
    precision: str,
    without: dict[str, float],
    with_: dict[str, float],
    allowed: float,
) -> Row:
    """What the suite adds, by line."""
    more = {s: n - without.get(s, 0) for s, n in with_.items()}
    more = {s: n for s, n in more.items() if n > 0}
    total = sum(with_.values()) - sum(without.values())
    lines = ", ".join(
        f"{n:g} at {site}" if is_ours(site) else f"{n:g} at {site} (not ours)"
        for site, n in sorted(more.items(), key=lambda item: -item[1])
    )
    found = f"{sum(without.values()):g} without, {sum(with_.values()):g} with the suite"
    found += f": {lines}" if lines else ""
    return judged(
        f"waits of the host in an iteration, {precision}",
        f"{found} (allowed: {allowed:g} more)",
        total <= allowed,
        without=without,
        with_suite=with_,
        added=more,
    )


def cross_check(
    precision: str,
    without: dict[str, float],
    with_: dict[str, float],
    profiled: list[dict[str, float]],
) -> Row:
    """Whether the profiler sees as many more as torch warns of."""
    warned = sum(with_.values()) - sum(without.values())
    seen = {
        key: profiled[1][key] - profiled[0][key] for key in ("host syncs", "copies")
    }
    found = (
        f"{seen['host syncs']:g} waits and {seen['copies']:g} copies to the host more, "
        f"by the profiler; torch warns of {warned:g}"
    )
    what = f"the same, counted twice, {precision}"
    numbers = dict(profiled=profiled, warned=warned)
    if not profiled[0]["launches"]:
        return Row(what, "the profiler sees nothing of the device", UNKNOWN, numbers)
    # More than torch warns of: something of ours waits behind its back.
    return judged(what, found, seen["host syncs"] < warned + 0.5, **numbers)
