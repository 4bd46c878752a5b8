"""Runs made by hand, for the tables."""

import json
import math

from amp_hooks.report.read.curves import Curve
from amp_hooks.report.read.history import Checkpoint, Start, Validation, merge

NAN = math.nan
FORWARD = "FORWARD_NONFINITE"
WHY = "loss 102 for 0.9 since iteration 61; the learning rate rose x30 there"
CONFIG = dict(
    optim_wrapper=dict(type="AmpOptimWrapper", optimizer=dict(type="SGD", lr=0.02)),
    param_scheduler=[dict(type="CosineAnnealingLR", by_epoch=False, end=9999)],
    log_processor=dict(window_size=50),
)


def line(iteration, event, verdict="HEALTHY", **fields):
    return dict(iter=iteration, event=event, verdict=verdict, **fields)


def start_line(iteration=0, hooks=("StabilityHook",), max_iters=1000, **fields):
    optimizers = ["optimizer: AmpOptimWrapper, SGD, dtype float16"]
    hooks = {hook: {} for hook in hooks}
    given = dict(hooks=hooks, max_iters=max_iters, optimizers=optimizers)
    return line(iteration, "start", **{**given, **fields})


def bad(*iterations, vetoed=True, verdict=FORWARD, **fields):
    """Overflow lines of bad iterations, undone or not."""
    lines = []
    for i in iterations:
        lines.append(line(i, "overflow", verdict, **fields))
        lines += [line(i, "veto", verdict, scale=1024.0)] if vetoed else []
    return lines


def overflows(*iterations, skip="calibration", scale=1024.0):
    return [
        line(i, "overflow", "SCALE_OVERFLOW", skip=skip, scale=scale)
        for i in iterations
    ]


def rollback(iteration, factor=0.1, number=1, verdict=FORWARD, **fields):
    return line(
        iteration, "rollback", verdict, rollbacks=number, lr_factor=factor,
        target_iter=0, scale=512.0, nonfinite_state=[], **fields,
    )  # fmt: skip


def diverged(iteration, since=61, why=WHY):
    """HealthHook is certain that the run is ill."""
    return line(
        iteration, "diverged", "DIVERGED", why=why, loss_ratio=113.0, since=since
    )


def went_back(iteration, factor=0.1):
    """What RollbackHook does about it."""
    return rollback(iteration, factor, verdict="DIVERGED", why=WHY)


def watch(iteration):
    return line(iteration, "watch", why="loss 3 for 0.9", loss_ratio=3.0, since=50)


def well(iteration):
    return line(iteration, "well", since=50)


def nan_term(iteration, **losses):
    return line(iteration, "nan_term", losses=losses, why="all gradients were finite")


def ended_with(iteration, error, verdict="HEALTHY"):
    """No hook of ours raised it."""
    return line(iteration, "abort", verdict, error=error)


def curve(values, every=10, first=9):
    """Values that were logged every so many iterations."""
    return Curve.of((first + every * k, v) for k, v in enumerate(values))


def checkpoint(losses, iteration=None, **fields):
    losses = list(losses)
    curves = dict(loss=curve(losses, 1, 0)) if losses else {}
    done = len(losses) if iteration is None else iteration
    return Checkpoint("work/iter.pth", done, curves=curves, **fields)


def run(
    lines=(),
    curves=None,
    config=None,
    validations=(),
    ckpt=None,
    name="20260101_000000",
):
    """A run of one start."""
    start = Start(
        name,
        list(lines),
        curves or {},
        [Validation(i, m) for i, m in validations],
        CONFIG if config is None else config,
    )
    return merge("work", [start], ckpt)


def write(work_dir, lines=(), curves=None, config="", validations=(), name=None):
    """A work_dir of one start, as MMEngine and our hooks write one; returns it.

    Args:
        work_dir: Is made.
        lines: Of the ledger.
        curves: By name; those of ``amp/`` and MMEngine's, one line for each iteration.
        config: The text of ``vis_data/config.py``.
        validations: ``(iteration, metrics)``.
        name: Of the start.
    """
    start = work_dir / (name or "20260101_000000")
    (start / "vis_data").mkdir(parents=True)
    text = "".join(json.dumps(x) + "\n" for x in lines)
    (start / "stability.jsonl").write_text(text, encoding="utf-8")
    (start / "vis_data/config.py").write_text(config, encoding="utf-8")
    logged = {}
    for key, points in (curves or {}).items():
        for i, value in zip(points.iters.tolist(), points.values.tolist()):
            logged.setdefault(i, {})[key] = value
    after = dict(validations)
    with open(start / "vis_data/scalars.json", "w", encoding="utf-8") as f:
        for i in sorted({*logged, *after}):
            if i in logged:
                f.write(json.dumps({**logged[i], "iter": i + 1, "step": i + 1}) + "\n")
            if i in after:
                f.write(json.dumps({**after[i], "time": 0.1, "step": i + 1}) + "\n")
    return work_dir
