"""Real runners from the project's own configs, and faults that really happen."""

import copy
import functools
import json
import time
import uuid
from pathlib import Path

import mmengine
import pytest
from mmengine.config import Config
from mmengine.runner import Runner
from mmengine.utils import digit_version

from amp_hooks.engine.runtime import Runtime
from amp_hooks.engine.tensors import named_tensors
from amp_hooks.engine.torch_api import TORCH
from amp_hooks.rollback.run_state import learned_state

ROOT = Path(__file__).parent.parent
CONFIGS = {
    "faster_rcnn": "configs/digits/faster-rcnn_r18_fpn_fp16.py",
    "faster_rcnn_hot": "configs/digits/faster-rcnn_r18_fpn_fp16_hot.py",
    "retinanet": "configs/digits/retinanet_r18_fpn_fp16_stability.py",
    "dino": "configs/digits/dino_r18_fp16_stability.py",
}
SUITE = [
    dict(type="amp_hooks.LossScaleMonitorHook"),
    dict(type="amp_hooks.ClsScoreMonitorHook"),
    dict(type="amp_hooks.GradNormMonitorHook"),
    dict(type="amp_hooks.HeadClampHook"),
    dict(type="amp_hooks.StepGuardHook"),
    dict(type="amp_hooks.BadBatchHook"),
    dict(type="amp_hooks.RollbackHook", interval=4, probation=0),
    dict(type="amp_hooks.ForensicsHook"),
    dict(type="amp_hooks.BoxSanityHook"),
    dict(type="amp_hooks.StabilityPanelHook", interval=2),
]
NEVER = 10**6  # an interval of validations
NEEDS_FP16 = pytest.mark.skipif(
    TORCH < (2, 3), reason="FP16 cannot be rehearsed with this torch"
)
NEEDS_TORCH_2_1 = pytest.mark.skipif(
    TORCH < (2, 1), reason="what torch or its MMEngine lacks is looked at, or counted"
)
SKIPS_DONE_BATCHES = pytest.mark.skipif(
    digit_version(mmengine.__version__) < digit_version("0.10"),
    reason="the resumed IterBasedTrainLoop of MMEngine begins the data anew",
)
MONITORS = SUITE[:3]
_ALWAYS = ("start", "preflight", "end")
# Arguments without a default.
REQUIRED = {"FaultInjectionHook": dict(faults=[dict(what="loss", at=0)])}


@functools.lru_cache(maxsize=None)
def _read(detector):
    return Config.fromfile(ROOT / CONFIGS[detector])


def make_config(
    detector,
    data,
    work_dir,
    *,
    iters=None,
    epochs=None,
    hooks=(),
    precision="float16",
    accumulate=1,
    ema=True,
    options=None,
):
    """A config of the project, made small: 64-pixel images, narrow layers."""
    cfg = copy.deepcopy(_read(detector))
    cfg.work_dir = str(work_dir)
    cfg.experiment_name = uuid.uuid4().hex  # the message hub is global by name
    cfg.visualizer.name = cfg.experiment_name  # and so is the visualizer
    cfg.log_level = "ERROR"
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.batch_size = 2
        loader.dataset.data_root = str(data)
        for step in loader.dataset.pipeline:
            if step.type == "Resize":
                step.scale = (64, 64)
    cfg.val_evaluator.ann_file = str(data / "val.json")
    cfg.test_dataloader, cfg.test_evaluator = cfg.val_dataloader, cfg.val_evaluator
    cfg.model.backbone.base_channels = 8
    levels = cfg.model.backbone.get("out_indices", (0, 1, 2, 3))
    cfg.model.neck.in_channels = [8 * 2**level for level in levels]
    if iters is not None:
        cfg.train_cfg = dict(
            type="IterBasedTrainLoop", max_iters=iters, val_interval=NEVER
        )
        cfg.train_dataloader.sampler = dict(type="InfiniteSampler", shuffle=True)
        cfg.log_processor.by_epoch = False
        cfg.default_hooks.checkpoint.by_epoch = False
        cfg.default_hooks.checkpoint.interval = 10**6
    if epochs is not None:
        cfg.train_cfg = dict(
            type="EpochBasedTrainLoop", max_epochs=epochs, val_interval=NEVER
        )
        cfg.train_dataloader.sampler = dict(type="DefaultSampler", shuffle=True)
        cfg.log_processor.by_epoch = True
    cfg.param_scheduler = [
        dict(type="CosineAnnealingLR", by_epoch=False, begin=0, end=200)
    ]
    if precision == "float32":
        cfg.optim_wrapper.type = "OptimWrapper"
        for key in ("dtype", "loss_scale"):
            cfg.optim_wrapper.pop(key)
    else:
        cfg.optim_wrapper.dtype = precision
    cfg.optim_wrapper.accumulative_counts = accumulate
    if not ema:
        cfg.default_hooks.pop("ema")
    cfg.custom_hooks = [dict(hook) for hook in hooks]
    if options:
        cfg.merge_from_dict(options)
    return cfg


def build_runner(detector, data, work_dir, **kwargs):
    """A Runner; its final validation is left out unless ``validate=True``."""
    validate = kwargs.pop("validate", False)
    cfg = make_config(detector, data, work_dir, **kwargs)
    loop = cfg.train_cfg
    if not validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    elif loop.val_interval == NEVER:  # before MMEngine 0.10 not at the end either
        loop.val_interval = loop.get("max_iters") or loop.get("max_epochs")
    # MMEngine names a start's folder by the second: two starts need two of them.
    while Path(work_dir, time.strftime("%Y%m%d_%H%M%S")).exists():
        time.sleep(0.05)
    return Runner.from_cfg(cfg)


def fault(what, at, **more):
    """A hook of ours that injects one fault."""
    faults = [dict(what=what, at=at, **more)]
    return dict(type="amp_hooks.FaultInjectionHook", faults=faults)


def infinite_images(at, **more):
    """The forward pass and the BatchNorm statistics are poisoned."""
    return fault("images", at, value="inf", count="all", **more)


def losses(runner):
    """The loss of every iteration so far."""
    return runner.message_hub.get_scalar("train/loss").data[0].tolist()


def records(runner):
    """What was measured in each iteration."""
    return list(Runtime.of(runner).recorder.records)


def log(runner):
    """The text log of a runner whose ``log_level`` was lowered."""
    (path,) = Path(runner.log_dir).glob("*.log")
    return path.read_text()


def state(runner):
    """Every number that training has learned, as one flat dict of copies."""
    return {n: t.detach().clone() for n, t in named_tensors(learned_state(runner))}


def read_ledger(path):
    """The lines of a ledger, read strictly."""

    def refuse(name):
        raise ValueError(f"{name} is not JSON")

    lines = Path(path).read_text().splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def ledger(runner, event=None):
    """The events of a runner; without a name, all but those of its start and end."""
    path = Path(runner.log_dir) / "stability.jsonl"
    lines = read_ledger(path) if path.exists() else []  # without hooks of ours
    if event is None:
        return [line for line in lines if line["event"] not in _ALWAYS]
    return [line for line in lines if line["event"] == event]


def dumps(runner):
    """The reports that ForensicsHook wrote, by iteration."""
    paths = Path(runner.log_dir).glob("faults/*/report.json")
    reports = [json.loads(path.read_text()) for path in paths]
    return {report["iter"]: report for report in reports}


def hook_of(runner, name):
    """The runner's hook of that class."""
    (hook,) = [h for h in runner.hooks if type(h).__name__ == name]
    return hook
