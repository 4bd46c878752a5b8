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
from gpu_check.rows import UNKNOWN, Row, judged

CONFIG = "configs/digits/faster-rcnn_r18_fpn_fp16_hot"
ACTS = ("veto", "clamp_on", "rollback", "fallback")


def check(machine: Card, place: Path) -> Iterator[Row]:
    """Two runs of which one may act."""
    lost, saved = (_train(machine, place, kind) for kind in ("watched", "stability"))
    yield from verdict(lost, saved)


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
        first_bad=bad[0] if bad else None,
        last_loss=losses[-1],
        scale=runner.optim_wrapper.loss_scaler.get_scale(),
        nonfinite=len(nonfinite_names(learned_state(runner), limit=10**6)),
        acts={name: events.count(name) for name in ACTS if name in events},
    )


def verdict(lost: dict[str, Any], saved: dict[str, Any]) -> Iterator[Row]:
    """Whether the one was lost, and the other saved."""
    text = (
        "{bad} of {iterations} losses not finite, the last is {last_loss:.3g}, loss "
        "scale {scale:g}, {nonfinite} tensors not finite"
    )
    died = lost["first_bad"] is not None and not math.isfinite(lost["last_loss"])
    yield Row(
        "overflow, watched only",
        text.format(**lost) + ("" if died else ": it did not overflow for good"),
        "measured" if died else UNKNOWN,
        lost,
    )
    acts = ", ".join(f"{number} x {name}" for name, number in saved["acts"].items())
    lives = math.isfinite(saved["last_loss"]) and not saved["nonfinite"]
    yield judged(
        "the same with the suite",
        f"{text.format(**saved)}; {acts or 'nothing done'}",
        lives and (bool(saved["acts"]) or not died),
        **saved,
    )
