"""The cells of rescue_benchmark.py: detectors, faults, policies, and their configs."""

from __future__ import annotations

import functools
import hashlib
import json
import os.path as osp
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mmcv
import mmdet
import mmengine
import torch
from mmengine.config import Config
from rescue_detectors import DETECTORS, TWO_STAGES
from small_detectors import ROOT, on_digits

SIZE, BATCH = 96, 4  # pixels, images
WARMUP = 10  # iterations, as many of a run as MMDetection's 500 of 90,000 and more
TOO_HIGH = 10  # times the learning rate
SPIKE = 10_000  # times a loss, once
# Runs of 5175 iterations, for the hooks' default intervals.
LONG, LONG_DETECTOR, LONG_FAULTS = 23, "fcos", ("hot_lr", "weight_nan")


@dataclass(frozen=True)
class Length:
    """How long the runs are.

    Args:
        images: For training, in the set that all cells train on.
        epochs: Of a cell.
        pretrain: Epochs of the run that the cells begin with, on other images.
    """

    images: int = 300
    epochs: int = 3
    pretrain: int = 16

    @property
    def iters(self) -> int:
        """Of a run of ``epochs``."""
        return self.images // BATCH * self.epochs


# As most of the runs are short, these are a twentieth of their defaults.
SHORT = dict(
    rollback=dict(
        interval=25, probation=5, warmup_iters=5, keep_lr_after=100, recent_iters=250
    ),
    head_clamp=dict(release_after=10),
)
POLICIES: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "nothing": ("nothing", []),
    "check": ("CheckInvalidLossHook", [dict(type="mmdet.CheckInvalidLossHook")]),
    "restore": ("restore last epoch", []),  # a hook of the script's own
    "clamp": ("clamp only", [dict(type="amp_hooks.HeadClampHook", when="always")]),
    "ladder": ("amp_hooks", [dict(type="amp_hooks.StabilityHook", **SHORT)]),
    "defaults": ("amp_hooks, defaults", [dict(type="amp_hooks.StabilityHook")]),
}
OURS, RIVALS = ("ladder", "defaults"), ("check", "restore", "clamp")
CLEAN, PRETRAIN = "clean", "pretrain"
NATURAL = {
    "hot_lr": f"learning rate x{TOO_HIGH}",
    "no_warmup": f"x{TOO_HIGH}, no warm-up",
    "head_x100": "head weights x100",
}
INJECTED = {
    "forward_inf": "inf in an activation",
    "gradient_nan": "NaN in a gradient",
    "bn_nan": "NaN in BatchNorm",
    "ema_nan": "NaN in the EMA",
    "boxes_zero": "boxes of zero width",
    "weight_nan": "NaN in a weight",
    "spike": f"a loss x{SPIKE}",
    "nan_term": "a NaN loss without gradient",
}
FAULTS = {**NATURAL, **INJECTED}
# What no loss scale is needed for; the others do the same in every precision.
IN_ALL_PRECISIONS = (*NATURAL, "spike")
PRECISIONS = {"float16": "FP16", "bfloat16": "BF16", "float32": "FP32"}
SEEDS = (0, 1, 2)
QUICK_FAULTS = ("hot_lr", "bn_nan", "weight_nan")
QUICK_DETECTORS = ("faster_rcnn", "fcos")


@dataclass(frozen=True)
class Cell:
    """One training run.

    Args:
        detector: Of ``DETECTORS``.
        fault: Of ``FAULTS``, or ``CLEAN``, or ``PRETRAIN``.
        policy: Of ``POLICIES``.
        precision: Of ``PRECISIONS``.
        seed: Of the data's order, the augmentation and the sampling of boxes.
        long: Whether it is ``LONG`` times as long.
    """

    detector: str
    fault: str
    policy: str
    precision: str = "float16"
    seed: int = 0
    long: bool = False

    @property
    def name(self) -> str:
        """For files and messages."""
        parts = [self.detector, self.fault, self.policy, self.precision, str(self.seed)]
        return ".".join(parts + ["long"] * self.long)

    def epochs(self, length: Length) -> int:
        """Of its run."""
        if self.fault == PRETRAIN:
            return length.pretrain
        return length.epochs * (LONG if self.long else 1)

    def iters(self, length: Length) -> int:
        """Of its run."""
        return length.images // BATCH * self.epochs(length)


def pretraining(detector: str) -> Cell:
    """The run that the others begin with."""
    return Cell(detector, PRETRAIN, "nothing", "float32")


def cells(
    detectors: Sequence[str],
    faults: Sequence[str],
    policies: Sequence[str],
    precisions: Sequence[str] = tuple(PRECISIONS),
    seeds: Sequence[int] = SEEDS,
) -> list[Cell]:
    """All of them; what others are compared with comes first, then what is promised."""
    made = [
        Cell(detector, fault, policy, precision, seed)
        for policy in policies
        for seed in seeds
        for precision in precisions
        for fault in [CLEAN, *faults]
        for detector in detectors
    ]
    made = list(filter(is_made, made))
    made.sort(key=lambda c: (c.policy in RIVALS, c.seed, c.precision != "float16"))
    if {"defaults", "nothing"} <= set(policies) and LONG_DETECTOR in detectors:
        made += [
            Cell(LONG_DETECTOR, fault, policy, long=True)
            for fault in [CLEAN, *(f for f in LONG_FAULTS if f in faults)]
            for policy in ("nothing", "defaults")
        ]
    return made


def is_made(cell: Cell) -> bool:
    """Whether this cell would tell anything."""
    if cell.policy in RIVALS and (cell.precision != "float16" or cell.seed):
        return False
    if cell.precision == "bfloat16" and cell.detector in TWO_STAGES:
        return False
    anywhere = cell.fault in (CLEAN, *IN_ALL_PRECISIONS)
    return cell.policy != "defaults" and (cell.precision == "float16" or anywhere)


def injected(cell: Cell, length: Length) -> dict[str, Any] | None:
    """The fault for FaultInjectionHook; ``None`` where a hook of the script does it."""
    detector = DETECTORS[cell.detector]
    at = onset(cell, length)
    conv = f"{detector.conv}.weight"
    return {
        "forward_inf": dict(
            what="forward", where=detector.conv, value="inf", iters=3, at=at
        ),
        "gradient_nan": dict(what="gradient", where=conv, value="nan", iters=3, at=at),
        "bn_nan": dict(what="buffer", where=f"{detector.norm}.running_mean", at=at),
        "ema_nan": dict(what="ema", where=f"*{conv}", at=at),
        "boxes_zero": dict(what="boxes", value="zero", iters=3, at=at),
        "weight_nan": dict(what="parameter", where=conv, at=at),
        "spike": dict(what="loss", where="*loss_cls*", value=f"x{SPIKE}", at=at),
    }.get(cell.fault)


def onset(cell: Cell, length: Length) -> int:
    """When a fault is injected: there is something to lose, and no epoch ends."""
    return int(cell.iters(length) * 0.6)


def make_config(cell: Cell, length: Length, out: str, work_dir: str) -> Config:
    """The config of a cell."""
    pretrain = cell.fault == PRETRAIN
    data = osp.join(out, "digits-other" if pretrain else "digits")
    detector = DETECTORS[cell.detector]
    cfg = on_digits(detector.config, detector.options, data, SIZE, BATCH)
    cfg.work_dir = work_dir
    cfg.randomness = dict(seed=cell.seed)
    cfg.default_hooks.checkpoint = None
    # After every epoch, as most people do; in the long ones after every tenth.
    every = 1000 if pretrain else 10 if cell.long else 1
    epochs = cell.epochs(length)
    cfg.train_cfg = dict(
        type="EpochBasedTrainLoop", max_epochs=epochs, val_interval=every
    )
    if not pretrain:
        cfg.load_from = osp.join(out, "cells", f"{pretraining(cell.detector).name}.pth")
    schedule(cfg, cell, cell.iters(length))
    set_precision(cfg, cell.precision)
    cfg.custom_hooks = hooks(cell, length)
    return cfg


def set_precision(cfg: Config, precision: str) -> None:
    """Of a config in FP16 with a loss scale."""
    wrapper = cfg.optim_wrapper
    if precision == "float32":
        wrapper.type = "OptimWrapper"
        del wrapper.dtype, wrapper.loss_scale
    elif precision == "bfloat16":
        wrapper.dtype = precision
        wrapper.loss_scale = dict(enabled=False)


def fingerprint(cell: Cell, length: Length) -> str:
    """Of what a cell's result depends on, the same in every folder."""
    everything, injected = cell.policy in ("clamp", *OURS), cell.fault in INJECTED
    code = _code("" if everything else "inject" if injected else None)
    if cell.fault != PRETRAIN:
        code += fingerprint(pretraining(cell.detector), length)
    return digest(make_config(cell, length, "out", "work_dir"), code)


def digest(cfg: Config, code: str) -> str:
    """Of a config, of the code it is run by, and of the machine."""
    values = cfg.to_dict()
    del values["experiment_name"], values["visualizer"]["name"]
    text = json.dumps(values, sort_keys=True, default=str) + machine() + code
    return hashlib.sha256(text.encode()).hexdigest()


def machine() -> str:
    """What results depend on, beside the code."""
    gpu = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if gpu else "a CPU with rehearsed FP16"
    packages = (torch, mmengine, mmcv, mmdet)
    versions = (f"{p.__name__} {p.__version__}" for p in packages)
    return f"{device}, {', '.join(versions)}"


@functools.lru_cache(maxsize=None)
def _code(folder: str | None) -> str:
    # Every cell may rehearse FP16 with ours.
    names = ["scripts/rescue_run.py", "scripts/rescue_policies.py"]
    names += ["scripts/rescue_faults.py"]
    names += ["scripts/make_digits.py"]
    names += [f"amp_hooks/precision/{m}.py" for m in ("cpu_amp", "half_rehearsal")]
    return code_of(names, folder)


def code_of(names: list[str], folder: str | None) -> str:
    """A digest of some files, and of all in a folder of amp_hooks, if one is given."""
    files = [Path(ROOT, name) for name in names]
    if folder is not None:
        files += sorted(Path(ROOT, "amp_hooks", folder).rglob("*.py"))
    return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()


def schedule(cfg: Config, cell: Cell, iters: int) -> None:
    """Optimizer, learning rate and warm-up."""
    detector = DETECTORS[cell.detector]
    if cell.fault == PRETRAIN:
        optimizer = dict(type="AdamW", lr=detector.pretrain_lr, weight_decay=0.05)
    else:
        times = TOO_HIGH if cell.fault in ("hot_lr", "no_warmup") else 1
        optimizer = dict(
            type="SGD", lr=detector.lr * times, momentum=0.9, weight_decay=1e-4
        )
    cfg.optim_wrapper.optimizer = optimizer
    warmup = {"no_warmup": 0, PRETRAIN: 4 * WARMUP}.get(cell.fault, WARMUP)
    warmup = min(warmup * (LONG if cell.long else 1), iters // 2)
    decay = dict(type="CosineAnnealingLR", by_epoch=False, begin=warmup, end=iters)
    rise = dict(type="LinearLR", start_factor=0.01, by_epoch=False, end=warmup)
    cfg.param_scheduler = [rise, decay] if warmup else [decay]


def hooks(cell: Cell, length: Length) -> list[dict[str, Any]]:
    """The policy's, and the fault's."""
    made: list[dict[str, Any]] = []
    if fault := injected(cell, length):
        made.append(dict(type="amp_hooks.FaultInjectionHook", faults=[fault]))
    return made + POLICIES[cell.policy][1]
