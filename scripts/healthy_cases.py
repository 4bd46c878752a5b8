"""The runs of healthy_runs.py: detectors, recipes, precisions, and their configs."""

from __future__ import annotations

import copy
import os.path as osp
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from healthy_hooks import HardBatchHook, JumpHook, LossWeightHook
from mmengine.config import Config
from mmengine.hooks import Hook
from rescue_cells import (
    BATCH,
    POLICIES,
    SIZE,
    WARMUP,
    Length,
    code_of,
    digest,
    pretraining,
    set_precision,
)
from rescue_detectors import DETECTORS, TWO_STAGES
from small_detectors import on_digits

FINE_TUNE, SCRATCH = "fine-tuned", "from scratch"
STARTS = {"tuned": FINE_TUNE, "scratch": SCRATCH}
PRECISIONS = ("float32", "bfloat16", "float16")
SCALE = 16.0  # of the loss, so that nothing overflows while GradScaler finds its own
ONLY_SCRATCH = ("retinanet", "yolox")
# A loss that can be switched: its module and its usual weight.
SWITCHED = {
    "faster_rcnn": ("roi_head.bbox_head.loss_bbox", 1.0),
    "fcos": ("bbox_head.loss_centerness", 1.0),
    "retinanet": ("bbox_head.loss_bbox", 1.0),
    "rtmdet": ("bbox_head.loss_bbox", 2.0),
}


@dataclass(frozen=True)
class Case:
    """A healthy run."""

    detector: str
    start: str  # of STARTS
    precision: str
    recipe: str

    @property
    def name(self) -> str:
        """For files and messages."""
        return f"{self.detector}.{self.start}.{self.precision}.{self.recipe}"

    @property
    def lr(self) -> float:
        """At which the detector does well."""
        detector = DETECTORS[self.detector]
        return detector.lr if self.start == "tuned" else detector.pretrain_lr


@dataclass
class Plan:
    """A run in the making.

    Attributes:
        cfg: Of the run.
        iters: How many there will be.
        epochs: The same in epochs.
        hooks: What makes the run uneven.
        first_epochs: Where it is interrupted and resumed, if it is.
    """

    cfg: Config
    iters: int
    epochs: int
    hooks: list[Hook]
    first_epochs: int | None = None

    def schedule(self, *then: dict[str, Any], warmup: int) -> None:
        """A warm-up, and what follows it."""
        rise = dict(type="LinearLR", start_factor=0.01, by_epoch=False, end=warmup)
        self.cfg.param_scheduler = [*([rise] if warmup else []), *then]

    def cosine(self, warmup: int) -> None:
        """A warm-up, and a cosine to the end."""
        decay = dict(type="CosineAnnealingLR", by_epoch=False)
        self.schedule(dict(decay, begin=warmup, end=self.iters), warmup=warmup)


def _steps(plan: Plan, case: Case) -> None:
    at = [plan.iters // 2, plan.iters * 3 // 4]
    then = dict(type="MultiStepLR", by_epoch=False, milestones=at, gamma=0.1)
    plan.schedule(then, warmup=warmup_of(case, plan.iters))


def _restarts(plan: Plan, case: Case) -> None:
    warmup = warmup_of(case, plan.iters)
    period = (plan.iters - warmup) // 3 + 1
    then = dict(
        type="CosineRestartLR",
        by_epoch=False,
        begin=warmup,
        periods=[period] * 3,
        restart_weights=[1.0] * 3,
        eta_min=0.0,
    )
    plan.schedule(then, warmup=warmup)


def _one_cycle(plan: Plan, case: Case) -> None:
    then = dict(type="OneCycleLR", by_epoch=False, eta_max=case.lr)
    # An epoch may end with a batch that is not full; beyond its end it is an error.
    plan.schedule(dict(then, total_steps=plan.iters + plan.epochs), warmup=0)


def _constant(plan: Plan, case: Case) -> None:
    plan.schedule(warmup=warmup_of(case, plan.iters))


def _long_warmup(plan: Plan, case: Case) -> None:
    plan.cosine(plan.iters * 2 // 3)


def _no_warmup(plan: Plan, case: Case) -> None:
    # What a warm-up does not reach at once is no sane rate without one.
    plan.cfg.optim_wrapper.optimizer.lr *= 0.3
    plan.cosine(0)


def _accumulate(plan: Plan, case: Case) -> None:
    plan.cfg.optim_wrapper.accumulative_counts = 4


def _batch_1(plan: Plan, case: Case) -> None:
    plan.cfg.train_dataloader.batch_size = 1
    plan.cfg.optim_wrapper.optimizer.lr /= BATCH
    # In an epoch there are BATCH times the iterations.
    plan.iters = plan.iters // plan.epochs * BATCH
    plan.cfg.train_cfg.max_epochs = plan.epochs = 1
    plan.cosine(warmup_of(case, plan.iters))


def _ema(plan: Plan, case: Case) -> None:
    plan.cfg.default_hooks.ema = dict(
        type="EMAHook",
        ema_type="ExpMomentumEMA",
        momentum=0.01,
        gamma=100,
        update_buffers=True,
    )


def _term_on(plan: Plan, case: Case) -> None:
    if case.detector == "yolox":
        _mosaic(plan, case)
        return
    module, weight = SWITCHED[case.detector]
    plan.hooks.append(LossWeightHook(module, {0: 0.0, plan.iters // 2: weight}))


def _term_off(plan: Plan, case: Case) -> None:
    module, _ = SWITCHED[case.detector]
    plan.hooks.append(LossWeightHook(module, {plan.iters // 2: 0.0}))


def _mosaic(plan: Plan, case: Case) -> None:
    """As in the recipes of these families, off for the last epochs."""
    cfg = plan.cfg
    loader = cfg.train_dataloader
    plain = copy.deepcopy(loader.dataset.pipeline)
    whole = (SIZE, SIZE)
    load, pack = plain[:2], plain[2:]
    if case.detector == "yolox":
        # MultiImageMixDataset loads each image by a pipeline of its own.
        inner = dict(loader.dataset, pipeline=load)
        half = -SIZE // 2
        mosaic = dict(type="Mosaic", img_scale=whole, pad_val=114.0)
        affine = dict(type="RandomAffine", max_rotate_degree=0, max_shear_degree=0)
        affine.update(scaling_ratio_range=(0.5, 1.5), border=(half, half))
        kept = dict(type="FilterAnnotations", min_gt_bbox_wh=(1, 1), keep_empty=False)
        loader.dataset = dict(
            type="MultiImageMixDataset",
            dataset=inner,
            pipeline=[mosaic, affine, pack[0], kept, *pack[1:]],
        )
        hook = dict(type="YOLOXModeSwitchHook", num_last_epochs=(plan.epochs - 1) // 2)
    else:
        mosaic = dict(type="CachedMosaic", img_scale=whole, pad_val=114.0)
        size = dict(type="RandomResize", scale=(2 * SIZE, 2 * SIZE), keep_ratio=True)
        loader.dataset.pipeline = [
            *load,
            dict(mosaic, max_cached_images=20),
            dict(size, ratio_range=(0.5, 1.5)),
            dict(type="RandomCrop", crop_size=whole),
            dict(type="Pad", size=whole, pad_val=dict(img=(114, 114, 114))),
            *pack[1:],
        ]
        hook = dict(type="PipelineSwitchHook", switch_pipeline=plain)
        hook.update(switch_epoch=(plan.epochs + 1) // 2)
    cfg.custom_hooks.append(hook)


def _multi_scale(plan: Plan, case: Case) -> None:
    sizes = [(SIZE * n // 3, SIZE * n // 3) for n in (2, 3, 4)]
    pipeline = plan.cfg.train_dataloader.dataset.pipeline
    plan.cfg.train_dataloader.dataset.pipeline = [
        dict(type="RandomChoiceResize", scales=sizes, keep_ratio=True)
        if step.type == "Resize"
        else step
        for step in pipeline
    ]


def _hard_batches(plan: Plan, case: Case) -> None:
    plan.hooks.append(HardBatchHook(every=20))


def _resume(plan: Plan, case: Case) -> None:
    plan.cfg.default_hooks.checkpoint = dict(type="CheckpointHook", interval=1)
    plan.first_epochs = (plan.epochs + 1) // 2


def _iters(plan: Plan, case: Case) -> None:
    cfg = plan.cfg
    cfg.train_cfg = dict(
        type="IterBasedTrainLoop", max_iters=plan.iters, val_interval=10**6
    )
    cfg.train_dataloader.sampler = dict(type="InfiniteSampler", shuffle=True)
    cfg.log_processor.by_epoch = False


def _evaluate(plan: Plan, case: Case) -> None:
    plan.cfg.train_cfg.val_interval = 1


def _lr_jump(plan: Plan, case: Case) -> None:
    plan.hooks.append(JumpHook(at=plan.iters // 2, factor=1e4))


def _nothing(plan: Plan, case: Case) -> None:
    pass


# What each is called in the table, and what makes it.
RECIPES: dict[str, tuple[str, Callable[[Plan, Case], None]]] = {
    "cosine": ("warm-up and cosine", _nothing),
    "constant": ("constant learning rate", _constant),
    "steps": ("step decay", _steps),
    "restarts": ("warm restarts", _restarts),
    "one_cycle": ("one-cycle", _one_cycle),
    "long_warmup": ("long warm-up", _long_warmup),
    "no_warmup": ("no warm-up", _no_warmup),
    "accumulate": ("gradients of 4 accumulated", _accumulate),
    "batch_1": ("batch size 1", _batch_1),
    "ema": ("EMA", _ema),
    "term_on": ("a loss switched on", _term_on),
    "term_off": ("a loss switched off", _term_off),
    "switch": ("mosaic switched off", _mosaic),
    "multi_scale": ("multi-scale images", _multi_scale),
    "hard_batches": ("hard batches", _hard_batches),
    "resume": ("resumed", _resume),
    "iters": ("iteration-based loop", _iters),
    "evaluate": ("evaluated every epoch", _evaluate),
    # Not healthy: with it the script must fail.
    "lr_jump": ("learning rate x10000", _lr_jump),
}
ILL = "lr_jump"
# Each uneven recipe in two detectors: one fine-tuned, one from scratch. The precisions
# take turns.
_PAIRS: dict[str, tuple[str, str]] = {
    "constant": ("fcos", "retinanet"),
    "steps": ("faster_rcnn", "yolox"),
    "restarts": ("fcos", "rtmdet"),
    "one_cycle": ("rtmdet", "faster_rcnn"),
    "long_warmup": ("cascade_rcnn", "fcos"),
    "no_warmup": ("faster_rcnn", "retinanet"),
    "accumulate": ("fcos", "rtmdet"),
    "batch_1": ("rtmdet", "fcos"),
    "ema": ("faster_rcnn", "yolox"),
    "term_on": ("fcos", "yolox"),
    "term_off": ("rtmdet", "faster_rcnn"),
    "switch": ("rtmdet", "fcos"),
    "multi_scale": ("cascade_rcnn", "retinanet"),
    "hard_batches": ("faster_rcnn", "fcos"),
    "resume": ("fcos", "rtmdet"),
    "iters": ("faster_rcnn", "yolox"),
    "evaluate": ("fcos", "retinanet"),
}
QUICK = (
    Case("fcos", "scratch", "float16", "cosine"),
    Case("rtmdet", "scratch", "bfloat16", "restarts"),
    Case("yolox", "scratch", "float32", "term_on"),
    Case("retinanet", "scratch", "float16", "evaluate"),
    Case("rtmdet", "scratch", "float32", "switch"),
    Case("faster_rcnn", "scratch", "float32", "hard_batches"),
)


def all_cases() -> list[Case]:
    """The uneven ones first, as they are more likely to be mistaken."""
    return [*_uneven(), *_even()]


def _uneven() -> list[Case]:
    cases = []
    for i, (recipe, detectors) in enumerate(_PAIRS.items()):
        for k, (start, detector) in enumerate(zip(STARTS, detectors)):
            precision = PRECISIONS[(i + k) % 3]
            if precision == "bfloat16" and detector in TWO_STAGES:
                precision = "float16"
            cases.append(Case(detector, start, precision, recipe))
    return cases


def _even() -> list[Case]:
    return [
        Case(detector, start, precision, "cosine")
        for precision in PRECISIONS
        for start in STARTS
        for detector in DETECTORS
        if not (start == "tuned" and detector in ONLY_SCRATCH)
        and not (precision == "bfloat16" and detector in TWO_STAGES)
    ]


def chosen(
    cases: Sequence[Case], detectors: Sequence[str], recipes: Sequence[str]
) -> list[Case]:
    """Those of these detectors and recipes, and what is ill if it is asked for."""
    wanted = [c for c in cases if c.detector in detectors and c.recipe in recipes]
    if ILL in recipes:
        wanted += [Case(d, "scratch", "float32", ILL) for d in detectors]
    return wanted


def make_plan(
    case: Case, length: Length, out: str, work_dir: str, *, hooked: bool
) -> Plan:
    """The config of a run, and the hooks that make it uneven."""
    detector = DETECTORS[case.detector]
    data = osp.join(out, "digits")
    cfg = on_digits(detector.config, detector.options, data, SIZE, BATCH)
    cfg.work_dir = work_dir
    cfg.default_hooks.checkpoint = None
    del cfg.default_hooks.ema
    cfg.train_cfg = dict(
        type="EpochBasedTrainLoop", max_epochs=length.epochs, val_interval=1000
    )
    if case.start == "tuned":
        first = pretraining(case.detector).name
        cfg.load_from = osp.join(out, "cells", f"{first}.pth")
        optimizer = dict(type="SGD", lr=case.lr, momentum=0.9, weight_decay=1e-4)
    else:
        optimizer = dict(type="AdamW", lr=case.lr, weight_decay=0.05)
    cfg.optim_wrapper.optimizer = optimizer
    set_precision(cfg, case.precision)
    if case.precision == "float16":
        # A step that is refused because of its scale takes BatchNorm back with it.
        cfg.optim_wrapper.loss_scale = dict(init_scale=SCALE, growth_interval=100)
    cfg.custom_hooks = []
    plan = Plan(cfg, length.iters, length.epochs, [])
    plan.cosine(warmup_of(case, plan.iters))
    RECIPES[case.recipe][1](plan, case)
    if not _evaluates(cfg):
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    if hooked:
        cfg.custom_hooks += copy.deepcopy(POLICIES["ladder"][1])
    return plan


def warmup_of(case: Case, iters: int) -> int:
    """Iterations, as in the rescue benchmark."""
    return min(WARMUP if case.start == "tuned" else 4 * WARMUP, iters // 2)


def _evaluates(cfg: Config) -> bool:
    return cfg.train_cfg.val_interval == 1


def fingerprint(case: Case, length: Length) -> str:
    """Of what the result of a case depends on, the same in every folder."""
    plan = make_plan(case, length, "out", "work_dir", hooked=True)
    names = ["scripts/make_digits.py"]
    names += [f"scripts/healthy_{m}.py" for m in ("hooks", "pair")]
    made = [(type(h).__name__, h.__dict__) for h in plan.hooks]
    return digest(plan.cfg, f"{made} {plan.first_epochs}{code_of(names, '')}")


def result_path(out: Path, case: Case) -> Path:
    """Where the result of a case is."""
    return out / "cells" / f"{case.name}.json"
