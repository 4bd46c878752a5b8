"""Is a run that went back the run that it was, generators of the card included?"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from healthy_pair import differences
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from gpu_check import runs
from gpu_check.machine import Card
from gpu_check.probe import Probe
from gpu_check.rows import UNKNOWN, Row, judged

AT, ILL, AFTER = 4, 4, 4  # iterations: until the snapshot, of the fault, after it
# Finite, so that only going back undoes it, and a loss that is not.
SPAN = dict(at=AT, iters=ILL)
FAULTS = [
    dict(what="parameter", where="bbox_head.*weight", value=0.5, count=3, **SPAN),
    dict(what="optimizer", where="backbone.*weight", value=7.0, **SPAN),
    dict(what="loss", value="nan", **SPAN),
]


class KeepFileHook(Hook):
    """Copies the snapshot's file: a run that ends well leaves none.

    Args:
        to: Where to.
    """

    def __init__(self, to: Path) -> None:
        self.to = to

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        """After the rollback; it is written in the background."""
        path = Path(runner.work_dir, "rollback", f"iter_{AT}.pth")
        end = time.monotonic() + 20
        while runner.iter == AT + ILL and not self.to.exists():
            if path.exists():
                shutil.copy(path, self.to)
            elif time.monotonic() > end:
                raise FileNotFoundError(f"{path} was not written")
            time.sleep(0.05)


def check(machine: Card, place: Path) -> Iterator[Row]:
    """Against the state when the snapshot was taken, and a resume from its file."""
    runs.repeatable()
    for precision in ("float32", "float16"):
        went_back, resumed = AT + ILL, AT
        back, again = (Probe(machine.device, (AT, went_back)) for _ in range(2))
        cfg = _config(place, precision, AT + ILL + AFTER, FAULTS)
        snapshot = place / f"{precision}.pth"
        ill = runs.train(cfg, back, KeepFileHook(snapshot))
        cfg = _config(place, precision, AT + AFTER)
        cfg.load_from, cfg.resume = str(snapshot), True
        fresh = runs.train(cfg, again)
        control = runs.train(cfg)
        before, after = back.states[AT], back.states[went_back]
        other = differences(before, after)
        found = f"{len(before)} tensors as when it was taken, {len(other)} differ"
        what = f"state after a rollback, {precision}"
        yield judged(what, found + f" {other[:2]}" * bool(other), not other)
        same = back.draws[AT] == again.draws[resumed]
        found = "the draw after the snapshot " + ("comes" if same else "does NOT come")
        what = f"{machine.device} generator after a resume, {precision}"
        numbers = dict(snapshot=back.draws[AT], resumed=again.draws[resumed])
        yield judged(what, f"{found} again", same, **numbers)
        yield goes_on(
            precision,
            runs.losses(ill)[went_back:],
            runs.losses(fresh)[-AFTER:],
            runs.losses(control)[-AFTER:],
        )


def _config(
    place: Path, precision: str, iters: int, faults: list[dict[str, Any]] | None = None
) -> Config:
    hooks = [
        dict(type="amp_hooks.StepGuardHook"),
        dict(
            type="amp_hooks.RollbackHook",
            interval=AT,
            probation=0,
            keep=30,
            patience=ILL,
            share=1.0,
            scale_factor=1.0,
            lr_factor=1.0,
            warmup_iters=0,
        ),
    ]
    if faults:
        hooks.insert(0, dict(type="amp_hooks.FaultInjectionHook", faults=faults))
    work_dir = place / precision / ("" if faults else "resumed")
    return runs.config(
        "retinanet",
        place.parent / "pictures",
        work_dir,
        iters=iters,
        precision=precision,
        hooks=hooks,
    )


def goes_on(
    precision: str, back: list[float], fresh: list[float], control: list[float]
) -> Row:
    """Losses after a rollback, after a resume, and after the same resume again."""
    what = f"training after a rollback, {precision}"
    if fresh != control:
        found = "the same resume twice gives other losses: kernels are not repeatable"
        return Row(what, found, UNKNOWN, dict(resumed=fresh, again=control))
    same = back == fresh
    found = f"losses of {len(back)} iterations are {'' if same else 'NOT '}bit for bit "
    found += "those of a run that resumed from the snapshot's file"
    return judged(what, found, same, after_rollback=back, resumed=fresh)
