"""One cell of rescue_benchmark.py."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import torch
from compare_runs import read_ledger
from mmengine.runner import Runner
from rescue_cells import PRETRAIN, Cell, Length, make_config, onset
from rescue_detectors import DETECTORS
from rescue_faults import NanTermHook, ScaleWeightsHook
from rescue_policies import ObserveHook, RestoreLastEpochHook

from amp_hooks.report.judge.status import Status
from amp_hooks.report.read.work_dir import read_run
from amp_hooks.report.show.page import make_page

_INTERVENTIONS = {"veto", "clamp_on", "rollback", "fallback", "abort"}


def train(cell: Cell, length: Length, out: Path) -> dict[str, Any]:
    """Train a cell; its folder is removed, its ledger is in the result.

    Raises:
        Exception: What all the others begin with cannot be trained, or this machine's
            disk or memory is at fault, and no fault that was planted.
    """
    work_dir = out / "runs" / cell.name
    shutil.rmtree(work_dir, ignore_errors=True)
    cfg = make_config(cell, length, str(out), str(work_dir))
    runner = Runner.from_cfg(cfg)
    observe = ObserveHook()
    restore = RestoreLastEpochHook()
    runner.register_hook(observe)
    if cell.policy == "restore":
        runner.register_hook(restore)
    if cell.fault == "head_x100":
        heads = list(DETECTORS[cell.detector].heads)
        hook = ScaleWeightsHook(heads, 100.0)
        runner._hooks.insert(0, hook)
    if cell.fault == "nan_term":
        runner._hooks.insert(0, NanTermHook(onset(cell, length)))
    error = ""
    try:
        runner.train()
    except Exception as e:  # the fault's doing, or the policy's
        if cell.fault == PRETRAIN or (observe.iters == 0 and of_the_machine(e)):
            raise
        error = f"{type(e).__name__}: {str(e)[:300]}"
    if cell.fault == PRETRAIN:
        kept = dict(state_dict=runner.model.state_dict())
        torch.save(kept, out / "cells" / f"{cell.name}.pth")
    ledger = read_ledger(work_dir)
    # GradScaler, too, refuses the steps by which it finds its scale.
    actions = [
        line
        for line in ledger
        if line["event"] in _INTERVENTIONS and line["verdict"] != "SCALE_OVERFLOW"
    ]
    lost = lost_iterations(ledger, restore.undone, observe.undone_before)
    if cell.fault != "nan_term":  # whose steps are taken
        lost |= set(observe.bad)
    scores = runner.message_hub.log_scalars
    about = verdict(work_dir, ledger) if ledger else {}
    shutil.rmtree(work_dir, ignore_errors=True)
    return dict(
        about,
        finished=not error,
        error=error,
        map=None if error else observe.map,
        iters=observe.iters,
        bad=len(observe.bad),
        lost=len(lost),
        wall=round(observe.wall, 1),
        cpu=round(observe.cpu, 1),
        actions=[f"{a['iter']} {a['event']}" for a in actions],
        ledger=[line for line in actions if line["event"] == "rollback"],
        loss=last_losses(scores),
    )


def verdict(work_dir: Path, ledger: list[dict[str, Any]]) -> dict[str, Any]:
    """What the report says of a run, and what pre-flight had said of it."""
    status: Status = make_page(read_run(work_dir, False)).judged.status
    found = [line["findings"] for line in ledger if line["event"] == "preflight"]
    return dict(report=status.name.lower(), foretold=sum(found, []))


def of_the_machine(error: Exception) -> bool:
    """Whether it is about files or memory."""
    words = ("out of memory", "not enough memory", "allocate memory")
    known = isinstance(error, (OSError, MemoryError))
    return known or any(w in str(error).lower() for w in words)


def lost_iterations(
    ledger: list[dict[str, Any]], restored: list[tuple[int, int]], before: set[int]
) -> set[int]:
    """Iterations that were undone, or whose step was refused.

    Args:
        ledger: Of the run.
        restored: First and last iterations that RestoreLastEpochHook has undone.
        before: Iterations that began with a rollback, and count.
    """
    lost = {i for first, last in restored for i in range(first, last + 1)}
    for line in ledger:
        at = line["iter"]
        if line["event"] == "rollback":
            lost |= set(range(line["target_iter"], at + (at not in before)))
        elif line["event"] == "veto" and line["verdict"] != "SCALE_OVERFLOW":
            lost.add(at)
    return lost


def last_losses(scores: Any) -> float | None:
    """Mean of the last ten losses."""
    if "train/loss" not in scores:
        return None
    losses = scores["train/loss"].data[0][-10:]
    mean = float(sum(losses) / max(len(losses), 1))
    return round(mean, 3) if math.isfinite(mean) else None
