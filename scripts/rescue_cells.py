"""The cells of rescue_benchmark.py: detectors, faults, policies, and their configs."""

from __future__ import annotations

import functools
import hashlib
import itertools
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
from small_detectors import R18, ROOT, on_digits

SIZE, BATCH = 96, 4  # pixels, images
WARMUP = 10  # iterations, as many of a run as MMDetection's 500 of 90,000 and more
TOO_HIGH = 10  # times the learning rate


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
        """Of a cell."""
        return self.images // BATCH * self.epochs


@dataclass(frozen=True)
class Detector:
    """One of mmdet's, made small.

    Args:
        config: Of mmdet.
        options: What makes it small and lets it learn digits.
        heads: Its classifier layers.
        conv: An early convolution.
        norm: Its BatchNorm.
        lr: At which SGD fine-tunes it well.
        pretrain_lr: At which AdamW trains it from scratch.
    """

    config: str
    options: dict[str, Any]
    heads: tuple[str, ...]
    conv: str = "backbone.conv1"
    norm: str = "backbone.bn1"
    lr: float = 0.02
    pretrain_lr: float = 1e-3


FPN = {
    **R18,
    "model.backbone.base_channels": 16,
    "model.neck.in_channels": [16, 32, 64, 128],
}
RPN = {
    "model.rpn_head.anchor_generator.scales": [4],
    "model.train_cfg.rpn_proposal.nms_pre": 100,
    "model.train_cfg.rpn_proposal.max_per_img": 64,
    "model.test_cfg.rpn.nms_pre": 100,
    "model.test_cfg.rpn.max_per_img": 50,
    "model.roi_head.bbox_roi_extractor.roi_layer.sampling_ratio": 1,
}
DETECTORS = {
    "faster_rcnn": Detector(
        "faster_rcnn/faster-rcnn_r18_fpn_8xb8-amp-lsj-200e_coco",
        {**FPN, **RPN, "model.train_cfg.rcnn.sampler.num": 32},
        ("roi_head.bbox_head.fc_cls",),
        lr=0.01,
    ),
    "cascade_rcnn": Detector(
        "cascade_rcnn/cascade-rcnn_r18_fpn_8xb8-amp-lsj-200e_coco",
        {**FPN, **RPN},
        tuple(f"roi_head.bbox_head.{i}.fc_cls" for i in range(3)),
        lr=0.01,
    ),
    "fcos": Detector(
        "fcos/fcos_r18_fpn_gn-head-center-normbbox-centeronreg-giou_"
        "8xb8-amp-lsj-200e_coco",
        {
            **FPN,
            "model.neck.start_level": 0,
            "model.bbox_head.stacked_convs": 2,
            "model.bbox_head.strides": [4, 8, 16, 32, 64],
        },
        ("bbox_head.conv_cls",),
        pretrain_lr=2e-3,
    ),
    "rtmdet": Detector(
        "rtmdet/rtmdet_tiny_8xb32-300e_coco",
        {
            "model.backbone.widen_factor": 0.25,
            "model.neck.in_channels": [64, 128, 256],
            "model.neck.out_channels": 64,
            "model.bbox_head.in_channels": 64,
            "model.bbox_head.feat_channels": 64,
            "model.bbox_head.exp_on_reg": True,  # as in the larger ones: learns faster
        },
        tuple(f"bbox_head.rtm_cls.{i}" for i in range(3)),
        "backbone.stem.0.conv",
        "backbone.stem.0.bn",
        pretrain_lr=4e-3,
    ),
}

POLICIES: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "nothing": ("nothing", []),
    "check": ("CheckInvalidLossHook", [dict(type="mmdet.CheckInvalidLossHook")]),
    "restore": ("restore last epoch", []),  # a hook of the script's own
    "clamp": ("clamp only", [dict(type="amp_hooks.HeadClampHook", when="always")]),
    # As the runs are short, these are a twentieth of their defaults.
    "ladder": (
        "amp_hooks",
        [
            dict(
                type="amp_hooks.StabilityHook",
                rollback=dict(
                    interval=25,
                    probation=5,
                    warmup_iters=5,
                    keep_lr_after=100,
                    recent_iters=250,
                ),
                head_clamp=dict(release_after=10),
            )
        ],
    ),
}
CLEAN, PRETRAIN, FP32 = "clean", "pretrain", "fp32"
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
}
FAULTS = {**NATURAL, **INJECTED}
QUICK_FAULTS = ("hot_lr", "bn_nan", "weight_nan")
QUICK_DETECTORS = ("faster_rcnn", "fcos")


@dataclass(frozen=True)
class Cell:
    """One training run."""

    detector: str
    fault: str  # or CLEAN, or PRETRAIN
    policy: str  # or FP32, which is only run without a fault

    @property
    def name(self) -> str:
        """For files and messages."""
        return f"{self.detector}.{self.fault}.{self.policy}"


def pretraining(detector: str) -> Cell:
    """The run that the others begin with."""
    return Cell(detector, PRETRAIN, FP32)


def cells(
    detectors: Sequence[str], faults: Sequence[str], policies: Sequence[str]
) -> list[Cell]:
    """All of them; what others are compared with comes first, then what is promised."""
    first = sorted(policies, key=lambda p: p not in ("ladder", "nothing"))
    combined = itertools.product(first, [CLEAN, *faults], detectors)
    return [
        *(Cell(detector, CLEAN, FP32) for detector in detectors),
        *(Cell(detector, fault, policy) for policy, fault, detector in combined),
    ]


def injected(cell: Cell, length: Length) -> dict[str, Any]:
    """The fault for FaultInjectionHook."""
    detector = DETECTORS[cell.detector]
    at = int(length.iters * 0.6)  # when there is something to lose; no epoch's end
    return {
        "forward_inf": dict(what="forward", where=detector.conv, value="inf", iters=3),
        "gradient_nan": dict(
            what="gradient", where=f"{detector.conv}.weight", value="nan", iters=3
        ),
        "bn_nan": dict(what="buffer", where=f"{detector.norm}.running_mean"),
        "ema_nan": dict(what="ema", where=f"*{detector.conv}.weight"),
        "boxes_zero": dict(what="boxes", value="zero", iters=3),
        "weight_nan": dict(what="parameter", where=f"{detector.conv}.weight"),
    }[cell.fault] | dict(at=at)


def make_config(cell: Cell, length: Length, out: str, work_dir: str) -> Config:
    """The config of a cell."""
    pretrain = cell.fault == PRETRAIN
    data = osp.join(out, "digits-other" if pretrain else "digits")
    detector = DETECTORS[cell.detector]
    cfg = on_digits(detector.config, detector.options, data, SIZE, BATCH)
    cfg.work_dir = work_dir
    cfg.default_hooks.checkpoint = None
    epochs = length.pretrain if pretrain else length.epochs
    cfg.train_cfg = dict(
        type="EpochBasedTrainLoop", max_epochs=epochs, val_interval=1000
    )
    if not pretrain:
        cfg.load_from = osp.join(out, "cells", f"{pretraining(cell.detector).name}.pth")
    schedule(cfg, cell, length.images // BATCH * epochs)
    if cell.policy == FP32:
        cfg.optim_wrapper.type = "OptimWrapper"
        del cfg.optim_wrapper.dtype, cfg.optim_wrapper.loss_scale
    cfg.custom_hooks = hooks(cell, length)
    return cfg


def fingerprint(cell: Cell, length: Length) -> str:
    """Of what a cell's result depends on, the same in every folder."""
    with_hooks = cell.policy in ("clamp", "ladder")
    return digest(make_config(cell, length, "out", "work_dir"), _code(with_hooks))


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


@functools.cache
def _code(with_hooks: bool) -> str:
    # Every cell rehearses FP16 and injects faults with ours.
    names = ["scripts/rescue_run.py", "scripts/rescue_policies.py"]
    names += ["scripts/make_digits.py"]
    names += [f"amp_hooks/precision/{m}.py" for m in ("cpu_amp", "half_rehearsal")]
    return code_of(names, "" if with_hooks else "inject")


def code_of(names: list[str], folder: str) -> str:
    """A digest of some files, and of all in a folder of amp_hooks."""
    files = [Path(ROOT, name) for name in names]
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
    warmup = min(warmup, iters // 2)
    decay = dict(type="CosineAnnealingLR", by_epoch=False, begin=warmup, end=iters)
    rise = dict(type="LinearLR", start_factor=0.01, by_epoch=False, end=warmup)
    cfg.param_scheduler = [rise, decay] if warmup else [decay]


def hooks(cell: Cell, length: Length) -> list[dict[str, Any]]:
    """The policy's, and the fault's."""
    made = []
    if cell.fault in INJECTED:
        made.append(
            dict(type="amp_hooks.FaultInjectionHook", faults=[injected(cell, length)])
        )
    if cell.policy in POLICIES:
        made += POLICIES[cell.policy][1]
    return made
