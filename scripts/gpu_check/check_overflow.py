"""The demo: a learning rate that overflows FP16, without and with the suite."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from compare_runs import read_ledger
from mmengine.config import Config
from mmengine.runner import Runner
from small_detectors import ROOT

from amp_hooks.engine.tensors import nonfinite_names
from amp_hooks.rollback.run_state import learned_state
from gpu_check import runs
from gpu_check.machine import Card
from gpu_check.rows import MEASURED, UNKNOWN, Row, judged

CONFIG = "configs/digits/faster-rcnn_r18_fpn_fp16_hot"
ACTS = ("veto", "clamp_on", "rollback", "fallback")
_TEXT = (
    "{bad} of {iterations} losses not finite, the last is {last_loss:.3g}, loss scale "
    "{scale:g}, {nonfinite} tensors not finite"
)


def check(machine: Card, place: Path) -> Iterator[Row]:
    """Two runs of which one may act; that one first, for NaN can end a process."""
    yield saved(_train(machine, place, "stability"))
    yield lost(_train(machine, place, "watched"))


def _train(machine: Card, place: Path, kind: str) -> dict[str, Any]:
    cfg = Config.fromfile(str(Path(ROOT, f"{CONFIG}_{kind}.py")))
    data, work_dir = place.parent / "pictures", place / kind
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.data_root = str(data)
    cfg.work_dir, cfg.log_level = str(work_dir), "ERROR"
    cfg.train_cfg.max_iters = machine.pick(300, 24)
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.test_cfg = cfg.test_dataloader = cfg.test_evaluator = None
    if machine.rehearsed:
        cfg.train_dataloader.batch_size = 1
        # So few iterations overflow on every processor at this one only.
        cfg.optim_wrapper.optimizer.lr *= 4
    runner = runs.train(cfg)
    return summary(runner, read_ledger(work_dir))


def summary(runner: Runner, ledger: list[dict[str, Any]]) -> dict[str, Any]:
    """How a run ended."""
    losses = runs.losses(runner)
    bad = [i for i, loss in enumerate(losses) if not math.isfinite(loss)]
    events = [line["event"] for line in ledger]
    return dict(
        iterations=len(losses),
        bad=len(bad),
        last_loss=losses[-1],
        scale=runner.optim_wrapper.loss_scaler.get_scale(),
        nonfinite=len(nonfinite_names(learned_state(runner), limit=10**6)),
        acts={name: events.count(name) for name in ACTS if name in events},
    )


def saved(run: dict[str, Any]) -> Row:
    """Whether the one with the suite was."""
    what = "overflow, with the suite"
    acts = ", ".join(f"{number} x {name}" for name, number in run["acts"].items())
    if not acts:
        return Row(what, f"{_TEXT.format(**run)}; nothing to do", UNKNOWN, run)
    lives = math.isfinite(run["last_loss"]) and not run["nonfinite"]
    return judged(what, f"{_TEXT.format(**run)}; {acts}", lives, **run)


def lost(run: dict[str, Any]) -> Row:
    """Whether the one that was only watched was, which is no fault of ours."""
    died = run["bad"] and not math.isfinite(run["last_loss"])
    found = _TEXT.format(**run) + ("" if died else ": it did not overflow for good")
    return Row("the same, watched only", found, MEASURED if died else UNKNOWN, run)
