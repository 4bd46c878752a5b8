"""One case of healthy_runs.py: the run without hooks, and the same with them."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from compare_runs import read_ledger
from healthy_cases import Case, make_plan
from mmengine.runner import Runner
from rescue_cells import Length
from torch import Tensor

from amp_hooks.engine.safe_load import allow_mmengine_checkpoints
from amp_hooks.engine.tensors import named_tensors
from amp_hooks.rollback.run_state import learned_state

_INTERVENTIONS = {"diverged", "rollback", "abort", "clamp_on", "fallback", "veto"}
_ORDINARY = "SCALE_OVERFLOW"  # GradScaler, too, refuses such a step


@dataclass
class Trained:
    """What is left of a run."""

    state: dict[str, Tensor]
    losses: list[float]
    ledger: list[dict[str, Any]]
    seconds: float
    error: str = ""


def compare(case: Case, length: Length, out: Path) -> dict[str, Any]:
    """Train a case twice; the folders are removed, lines of the ledger kept.

    Raises:
        Exception: The run without hooks cannot be trained, so it shows nothing.
    """
    without = train(case, length, out, hooked=False)
    with_hooks = train(case, length, out, hooked=True)
    return dict(
        iters=len(without.losses),
        error=with_hooks.error,
        differ=differences(without.state, with_hooks.state),
        first=first_difference(without.losses, with_hooks.losses),
        **sorted_out(with_hooks.ledger),
        seconds=[round(without.seconds, 1), round(with_hooks.seconds, 1)],
        losses=[without.losses, with_hooks.losses],
    )


def train(case: Case, length: Length, out: Path, *, hooked: bool) -> Trained:
    """A run; interrupted and resumed, if that is its recipe."""
    work_dir = out / "runs" / f"{case.name}.{'hooks' if hooked else 'plain'}"
    shutil.rmtree(work_dir, ignore_errors=True)
    began, error = time.perf_counter(), ""
    for runner in starts(case, length, out, work_dir, hooked):
        try:
            runner.train()
        except Exception as e:
            if not hooked:
                raise
            error = f"{type(e).__name__}: {str(e)[:300]}"
            break
    seconds = time.perf_counter() - began
    scores = runner.message_hub.log_scalars
    logged = scores["train/loss"].data[0] if "train/loss" in scores else []
    state = {n: t.detach().clone() for n, t in named_tensors(learned_state(runner))}
    ledger = read_ledger(work_dir)
    shutil.rmtree(work_dir, ignore_errors=True)
    return Trained(state, [float(x) for x in logged], ledger, seconds, error)


def starts(
    case: Case, length: Length, out: Path, work_dir: Path, hooked: bool
) -> Iterator[Runner]:
    """A runner, or two if the run is resumed."""
    first_epochs = None
    for resumed in (False, True):
        plan = make_plan(case, length, str(out), str(work_dir), hooked=hooked)
        if resumed:
            if first_epochs is None:
                return
            plan.cfg.load_from, plan.cfg.resume = None, True
            allow_mmengine_checkpoints()  # torch refuses them without our hooks
        elif plan.first_epochs is not None:
            # It ends there, but its schedule does not.
            first_epochs = plan.cfg.train_cfg.max_epochs = plan.first_epochs
        runner = Runner.from_cfg(plan.cfg)
        for hook in plan.hooks:
            runner.register_hook(hook)
        yield runner


def differences(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    """Names of what is not bit-identical in two learned states."""
    alone = sorted(a.keys() ^ b.keys())
    return alone + [n for n in a if n in b and not identical(a[n], b[n])]


def identical(a: Tensor, b: Tensor) -> bool:
    """Bit for bit; NaN is like NaN."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(a, b) or torch.equal(a.isnan() & b.isnan(), a != b)


def first_difference(a: list[float], b: list[float]) -> int | None:
    """The first iteration whose losses differ; NaN is like NaN."""
    for i, (x, y) in enumerate(zip(a, b)):
        if x != y and not (x != x and y != y):
            return i
    return None if len(a) == len(b) else min(len(a), len(b))


def sorted_out(ledger: list[dict[str, Any]]) -> dict[str, Any]:
    """Interventions and watches of a ledger, and how many steps overflowed."""
    overflows, interventions = 0, []
    for line in ledger:
        if line["event"] == "veto" and line["verdict"] == _ORDINARY:
            overflows += 1
        elif line["event"] in _INTERVENTIONS:
            interventions.append(line)
    watches = [line for line in ledger if line["event"] == "watch"]
    return dict(interventions=interventions, watches=watches, overflows=overflows)
