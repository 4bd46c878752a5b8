"""How long training stands still for a snapshot, pinned memory or not."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from bench_snapshots import Stopwatch, take

from amp_hooks.rollback.host_copy import host_bytes
from gpu_check import runs
from gpu_check.machine import Card
from gpu_check.rows import Row


def check(machine: Card, place: Path) -> Iterator[Row]:
    """Faster R-CNN with EMA, as scripts/bench_snapshots.py has it."""
    size, batch = machine.pick((640, 2), (64, 1))
    for pinned in (False, True):
        with tempfile.TemporaryDirectory(dir=place) as folder:
            place_ = Path(folder)
            make = runs.standing(machine, place_, size, batch, "float16", "faster_rcnn")
            rollback = dict(
                type="amp_hooks.RollbackHook",
                interval=10**9,
                probation=0,
                pin_memory=pinned,
            )
            live = make([dict(type="EMAHook"), rollback])
            yield _measure(machine, live, pinned)


def _measure(machine: Card, live: runs.Live, pinned: bool) -> Row:
    runner, watch = live.runner, Stopwatch(machine.device)
    (hook,) = [h for h in runner.hooks if type(h).__name__ == "RollbackHook"]
    hook._snapshots.finish()
    for _ in range(machine.pick(5, 1)):
        watch("iteration", lambda: live.run(1))
        watch("snapshot", lambda: take(hook, runner))
        watch("background", hook._snapshots.finish)
        newest = hook._ring.entries[-1].item
        watch("rollback", lambda newest=newest: newest.restore(runner))
    ms = {name: median(times) * 1e3 for name, times in watch.times.items()}
    held = host_bytes(newest.state)
    found = (
        f"{ms['snapshot']:.1f} ms for {held / 2**20:.0f} MiB, rollback "
        f"{ms['rollback']:.1f} ms, iteration {ms['iteration']:.1f} ms"
    )
    what = f"training waits for a snapshot, {'pinned' if pinned else 'ordinary'} memory"
    return Row(what, found, numbers=dict(ms=ms, times=watch.times, bytes=held))
