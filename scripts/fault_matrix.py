"""Every kind of fault, in real detectors: does a bad step leave a trace?

    python scripts/fault_matrix.py                      # everything, with and without
    python scripts/fault_matrix.py --detectors fcos --precisions float16 --loops iter

Small versions of mmdet's own detectors train on digits of 64 pixels, by ordinary
Runners with StepGuardHook and RollbackHook in their config, and FaultInjectionHook
breaks something in every other iteration. After each fault every weight, buffer,
optimizer state and EMA value is compared, bit by bit, with what it was before the
faulty iteration. 'undone' means equal; 'harmless' that nothing became non-finite and
training went on, which is right for a fault that keeps everything finite. In the end
the detector is evaluated, and mAP and predictions must be finite.

A fault of the iteration (activations, gradients, losses, exceptions) is undone by the
guard; one of the state (weights, buffers, optimizer, EMA) by the rollback, here to a
snapshot of the iteration before.

The second table is the same without our hooks, a run for each fault: what holds NaN or
infinity two iterations after it. Exit status 1 if a guarded cell is neither.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os.path as osp
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from small_detectors import R18, ROOT, every_box_counts, on_digits
from torch import Tensor

from amp_hooks.engine.command_line import markdown_table
from amp_hooks.engine.runtime import Runtime
from amp_hooks.engine.tensors import named_tensors
from amp_hooks.rollback.run_state import learned_state

FPN = {**R18, "model.neck.in_channels": [8, 16, 32, 64]}

# mmdet's config, what makes it small, and its classifier.
DETECTORS: dict[str, tuple[str, dict[str, Any], str]] = {
    "faster_rcnn": (
        "faster_rcnn/faster-rcnn_r18_fpn_8xb8-amp-lsj-200e_coco",
        FPN,
        "roi_head.bbox_head.fc_cls",
    ),
    "cascade_rcnn": (
        "cascade_rcnn/cascade-rcnn_r18_fpn_8xb8-amp-lsj-200e_coco",
        FPN,
        "roi_head.bbox_head.1.fc_cls",
    ),
    "retinanet": (
        "retinanet/retinanet_r18_fpn_8xb8-amp-lsj-200e_coco",
        FPN,
        "bbox_head.retina_cls",
    ),
    "fcos": (
        "fcos/fcos_r18_fpn_gn-head-center-normbbox-centeronreg-giou_"
        "8xb8-amp-lsj-200e_coco",
        FPN,
        "bbox_head.conv_cls",
    ),
    "rtmdet": (
        "rtmdet/rtmdet_tiny_8xb32-300e_coco",
        {
            "model.backbone.widen_factor": 0.125,
            "model.neck.in_channels": [32, 64, 128],
            "model.neck.out_channels": 32,
            "model.bbox_head.in_channels": 32,
            "model.bbox_head.feat_channels": 32,
        },
        "bbox_head.rtm_cls.0",
    ),
    "detr": (
        "detr/detr_r18_8xb2-500e_coco",
        {
            **R18,
            "model.neck.in_channels": [64],
            "model.num_queries": 20,
            "model.test_cfg.max_per_img": 20,
        },
        "bbox_head.fc_cls",
    ),
}
PRECISIONS = ("float32", "bfloat16", "float16")
LOOPS = ("iter", "epoch")


def faults_for(detector: str) -> dict[str, dict[str, Any]]:
    """Every fault, by a name for the table."""
    cls = DETECTORS[detector][2]
    conv = "backbone.stem.0.conv" if detector == "rtmdet" else "backbone.conv1"
    norm = "backbone.stem.0.bn" if detector == "rtmdet" else "backbone.bn1"
    return {
        "inf in an image": dict(what="images", value="inf"),
        "NaN in an early activation": dict(what="forward", where=conv, value="nan"),
        "inf in an early activation": dict(what="forward", where=conv, value="inf"),
        "inf in a logit": dict(what="forward", where=cls, value="inf"),
        "NaN in a logit": dict(what="forward", where=cls, value="nan"),
        "logits x 1000": dict(what="forward", where=cls, value="x1000"),
        "NaN in a gradient": dict(what="gradient", where=f"{conv}.weight", value="nan"),
        "inf in a gradient": dict(what="gradient", where=f"{cls}.bias", value="inf"),
        "NaN loss": dict(what="loss", value="nan"),
        "inf in loss_cls": dict(what="loss", where="*loss_cls*", value="inf"),
        "loss x 1000": dict(what="loss", value="x1000"),
        "exception of an assigner": dict(what="raise"),
        "box of zero width": dict(what="boxes", value="zero"),
        "NaN in a box": dict(what="boxes", value="nan"),
        "NaN in a weight": dict(what="parameter", where=f"{conv}.weight", value="nan"),
        "NaN in BatchNorm statistics": dict(
            what="buffer", where=f"{norm}.running_mean", value="nan"
        ),
        "NaN in optimizer state": dict(
            what="optimizer", where=f"{cls}.weight", value="nan"
        ),
        "NaN in EMA": dict(what="ema", where=f"*{conv}.weight", value="nan"),
    }


class Compare(Hook):
    """Whether the state at the next iteration is that before the faulty one."""

    priority = 60  # after RollbackHook and EMAHook, before the faults

    def __init__(self, at: list[int]) -> None:
        self.at, self.equal = set(at), {}
        self._before: dict[str, Tensor] = {}

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        """Compare with what was kept; keep it before a fault."""
        last = runner.iter - 1
        if last in self.at:
            now = dict(named_tensors(learned_state(runner)))
            self.equal[last] = now.keys() == self._before.keys() and all(
                _same_bits(t, self._before[name]) for name, t in now.items()
            )
        if runner.iter in self.at:
            state = named_tensors(learned_state(runner))
            self._before = {name: t.detach().clone() for name, t in state}


def _same_bits(a: Tensor, b: Tensor) -> bool:
    # Not torch.equal: NaN must equal itself, and 0.0 not -0.0.
    a, b = (t.reshape(-1).contiguous().view(torch.uint8) for t in (a, b))
    return torch.equal(a, b)


def make_runner(
    detector: str, precision: str, loop: str, iters: int, hooks: list, data: str
) -> Runner:
    """A Runner from this project's digits config, with mmdet's detector in it."""
    path, options, _ = DETECTORS[detector]
    cfg = on_digits(path, options, data, size=64, batch=2)
    every_box_counts(cfg.model)
    cfg.work_dir = tempfile.mkdtemp(dir=data)
    cfg.log_level = "CRITICAL"
    cfg.default_hooks = dict(ema=cfg.default_hooks.ema, logger=None, checkpoint=None)
    cfg.default_hooks["ema"].update(update_buffers=True)
    cfg.param_scheduler = None
    cfg.optim_wrapper = dict(
        type="OptimWrapper", optimizer=dict(type="SGD", lr=1e-4, momentum=0.9)
    )
    if precision != "float32":
        cfg.optim_wrapper.update(
            type="amp_hooks.CpuAmpOptimWrapper",
            dtype=precision,
            loss_scale=dict(init_scale=128.0),
        )
    if loop == "iter":
        cfg.train_cfg = dict(type="IterBasedTrainLoop", max_iters=iters)
        cfg.train_dataloader.sampler = dict(type="InfiniteSampler", shuffle=True)
    else:  # 12 iterations an epoch
        epochs = -(-iters // 12)
        cfg.train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=epochs)
    cfg.train_cfg["val_interval"] = 10**6
    cfg.custom_hooks = hooks
    return Runner.from_cfg(cfg)


def guarded(
    detector: str, precision: str, loop: str, data: str, only: Iterable[str] = ()
) -> dict[str, str]:
    """What became of each fault in one run, and of the evaluation after it."""
    faults = faults_for(detector)
    faults = {name: faults[name] for name in only or faults}
    at = {name: 2 + 2 * i for i, name in enumerate(faults)}
    hooks = [
        dict(
            type="amp_hooks.FaultInjectionHook",
            faults=[dict(fault, at=at[name]) for name, fault in faults.items()],
        ),
        dict(type="amp_hooks.ClsScoreMonitorHook"),
        dict(type="amp_hooks.StepGuardHook"),
        dict(
            type="amp_hooks.RollbackHook",
            interval=1,
            probation=0,
            cooldown=0,
            patience=1000,
            window=1000,
            lr_factor=1.0,
            warmup_iters=0,
            max_rollbacks=1000,
            max_recent=1000,
        ),
    ]
    iters = 2 * len(faults) + 4
    runner = make_runner(detector, precision, loop, iters, hooks, data)
    compare = Compare(list(at.values()))
    runner.register_hook(compare)
    runner.train()
    verdicts = {r.iter: r.verdict.value for r in Runtime.of(runner).recorder.records}
    cells = {}
    for name, i in at.items():
        if compare.equal[i]:
            cells[name] = "undone"
        else:
            cells[name] = "harmless" if verdicts[i] == "HEALTHY" else "FAILED"
    after = [verdicts[i] for i in verdicts if i > max(at.values())]
    cells["training goes on"] = "yes" if "HEALTHY" in after else "FAILED"
    state = named_tensors(learned_state(runner))
    finite = all(bool(torch.isfinite(t).all()) for _, t in state)
    metrics = runner.val_loop.run()
    # Without a single finite box there would be no mAP at all.
    finite &= math.isfinite(metrics.get("coco/bbox_mAP", math.nan))
    cells["evaluation is finite"] = "yes" if finite else "FAILED"
    return cells


def unguarded(detector: str, precision: str, fault: dict, data: str) -> str:
    """What is not finite, two iterations after a fault, without our hooks."""
    hooks = [dict(type="amp_hooks.FaultInjectionHook", faults=[dict(fault, at=3)])]
    runner = make_runner(detector, precision, "iter", 6, hooks, data)
    try:
        runner.train()
    except Exception as e:
        return f"run ends: {type(e).__name__}"
    harmed = []
    for name, tensor in named_tensors(learned_state(runner)):
        kind = "BatchNorm" if "running_" in name else name.split(".")[0].split("[")[0]
        if not torch.isfinite(tensor).all() and kind not in harmed:
            harmed.append(kind)
    scaler = getattr(runner.optim_wrapper, "loss_scaler", None)
    if scaler is not None and scaler.get_scale() != 128.0:
        harmed.append(f"scale {scaler.get_scale():g}")
    return ", ".join(harmed) or "-"


def attempt(call: Any, *args: Any) -> Any:
    """The result, or why there is none."""
    try:
        return call(*args)
    except Exception as e:
        if "BFloat16" in str(e):
            return "mmcv has no BF16 on a CPU"
        raise


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--detectors", nargs="+", default=list(DETECTORS))
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS))
    parser.add_argument("--loops", nargs="+", default=list(LOOPS))
    parser.add_argument("--without", default="retinanet", help="'' for no 2nd table")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as data:
        make = [sys.executable, osp.join(ROOT, "scripts/make_digits.py"), "--out", data]
        sizes = ["--size", "64", "--train", "24", "--val", "8"]
        subprocess.run([*make, *sizes], check=True, capture_output=True)
        failed = with_guard(args, data)
        if args.without:
            without_guard(args, data)
    raise SystemExit(failed)


def with_guard(args: argparse.Namespace, data: str) -> bool:
    """Print the table; whether a cell failed."""
    counts: dict[str, dict[str, Counter]] = {}
    for detector, precision, loop in itertools.product(
        args.detectors, args.precisions, args.loops
    ):
        cells = attempt(guarded, detector, precision, loop, data)
        print(f"{detector} {precision} {loop}: {cells}", file=sys.stderr, flush=True)
        if isinstance(cells, str):
            continue
        for fault, cell in cells.items():
            row = counts.setdefault(fault, {})
            row.setdefault(detector, Counter())[cell] += 1
    table = [["fault", *args.detectors]]
    for fault, row in counts.items():
        cells = [
            ", ".join(f"{cell} {n}" for cell, n in row.get(d, Counter()).items())
            for d in args.detectors
        ]
        table.append([fault, *cells])
    print(f"\n### With StepGuardHook and RollbackHook\n\n{markdown_table(table)}")
    return any("FAILED" in cell for row in table for cell in row)


def without_guard(args: argparse.Namespace, data: str) -> None:
    """Print what stays non-finite."""
    table = [["fault", *args.precisions]]
    for name, fault in faults_for(args.without).items():
        cells = [
            attempt(unguarded, args.without, precision, fault, data)
            for precision in args.precisions
        ]
        table.append([name, *cells])
    print(f"\n### Without ({args.without})\n\n{markdown_table(table)}")


if __name__ == "__main__":
    main()
