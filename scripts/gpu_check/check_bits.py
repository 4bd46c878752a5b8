"""Does watching change a bit? With a control: do two plain runs have the same bits?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from healthy_pair import differences, first_difference

from gpu_check import runs
from gpu_check.machine import Card
from gpu_check.probe import Probe
from gpu_check.rows import UNKNOWN, Row, judged


def check(machine: Card, place: Path) -> Iterator[Row]:
    """RetinaNet, which needs no operator that adds in any order."""
    unordered = runs.repeatable()
    iters = machine.pick(40, 3)
    for precision in ("float32", "float16"):
        done, draws = [], []
        for name, hooks in (("a", []), ("again", []), ("suite", runs.SUITE)):
            cfg = runs.config(
                "retinanet",
                place.parent / "pictures",
                place / f"{precision}-{name}",
                iters=iters,
                precision=precision,
                hooks=hooks,
            )
            probe = Probe(machine.device)
            runner = runs.train(cfg, probe)
            draws.append(probe.draws)
            done.append((runs.losses(runner), runs.learned(runner)))
        yield verdict(precision, done, sorted(unordered))
        same = draws[0] == draws[2]
        found = f"{len(draws[0])} draws are {'' if same else 'NOT '}the same"
        what = f"random numbers with and without the suite, {precision}"
        yield judged(what, found, same and len(draws[0]) == iters)


def verdict(precision: str, done: list, unordered: list[str]) -> Row:
    """Of a plain run, the same again, and the same with the suite.

    Args:
        precision: Of all three.
        done: Losses and learned tensors of each.
        unordered: Kernels that torch says cannot be repeated.
    """
    (losses, state), (losses_again, again), (losses_suite, suite) = done
    control = differences(state, again)
    changed = differences(state, suite)
    what = f"weights and losses with and without the suite, {precision}"
    numbers = dict(
        tensors=len(state),
        iterations=len(losses),
        control_differs=len(control),
        suite_differs=len(changed),
        first_difference=first_difference(losses, losses_suite),
        unordered=unordered,
    )
    if control or losses != losses_again:
        why = f" ({', '.join(unordered)})" if unordered else ""
        found = (
            f"two runs without hooks differ in {len(control)} of {len(state)} tensors: "
            f"this machine's kernels are not repeatable{why}; nothing can be said "
            "of the suite"
        )
        return Row(what, found, UNKNOWN, numbers)
    same = not changed and losses == losses_suite
    found = f"{len(state)} tensors after {len(losses)} iterations: "
    if same:
        found += "every bit the same, as in two runs without hooks"
    else:
        first = numbers["first_difference"]
        found += f"{len(changed)} differ, from iteration {first} on ({changed[:2]}), "
        found += "though two runs without hooks do not"
    return judged(what, found, same, **numbers)
