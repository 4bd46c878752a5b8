"""Short training runs of small detectors, and what is left of them."""

from __future__ import annotations

import os
import time
import warnings
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mmengine.config.config
import torch
from bench_runs import Live, build_model
from mmdet.testing import demo_mm_inputs
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.runner import Runner
from rescue_cells import set_precision
from rescue_detectors import DETECTORS
from small_detectors import on_digits

from amp_hooks.engine.tensors import named_tensors
from amp_hooks.rollback.run_state import learned_state
from gpu_check.machine import Card

SUITE = [dict(type="amp_hooks.StabilityHook")]
# Of an iteration: without what is done once in a while or once in a run.
EACH_ITERATION = [
    dict(type="amp_hooks.StabilityHook", preflight=None, rollback=dict(interval=10**9))
]
SIZE, BATCH = 96, 4  # pixels, images


def quick_configs() -> None:
    """Runners have yapf format their config seven times, as long as a short run."""
    if hasattr(mmengine.config.config, "FormatCode"):
        mmengine.config.config.FormatCode = lambda code, **style: (code, True)


def repeatable() -> set[str]:
    """Have kernels chosen that add in the same order each time, where there are such.

    Returns:
        Is filled, as they are met, with what has none.
    """
    # Read when the first handle is made.
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    found: set[str] = set()

    def note(message: Any, *where: Any, **more: Any) -> None:
        text = str(message)
        if "does not have a deterministic" in text:
            found.add(text.split(" does not have")[0])

    warnings.simplefilter("always")
    warnings.showwarning = note
    return found


def config(
    detector: str,
    data: Path,
    work_dir: Path,
    *,
    iters: int,
    precision: str = "float16",
    hooks: Sequence[dict[str, Any]] = (),
    scale: float = 128.0,
) -> Config:
    """A run of some iterations, always the same ones.

    Args:
        detector: Of ``DETECTORS``.
        data: Of ``pictures.draw``.
        work_dir: Of the run.
        iters: How many.
        precision: 'float32', 'float16' or 'bfloat16'.
        hooks: The run's ``custom_hooks``.
        scale: First loss scale; so low that nothing overflows.
    """
    made = DETECTORS[detector]
    cfg = on_digits(made.config, made.options, str(data), SIZE, BATCH)
    cfg.work_dir = str(work_dir)
    cfg.log_level = "ERROR"
    cfg.train_cfg = dict(type="IterBasedTrainLoop", max_iters=iters, val_interval=10**6)
    # No order of the data depends on where a run began.
    cfg.train_dataloader.sampler = dict(type="InfiniteSampler", shuffle=False)
    cfg.train_dataloader.dataset.indices = 2 * BATCH
    cfg.log_processor.by_epoch = False
    cfg.default_hooks.checkpoint = None
    cfg.param_scheduler = None
    cfg.optim_wrapper.loss_scale = dict(init_scale=scale)
    set_precision(cfg, precision)
    cfg.custom_hooks = [dict(hook) for hook in hooks]
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    return cfg


def train(cfg: Config, *more: Hook) -> Runner:
    """Train to the end, with some hooks more."""
    quick_configs()
    while Path(cfg.work_dir, time.strftime("%Y%m%d_%H%M%S")).exists():
        time.sleep(0.05)  # MMEngine names the folder of a start by the second
    runner = Runner.from_cfg(cfg)
    for hook in more:
        runner.register_hook(hook)
    runner.train()
    return runner


def losses(runner: Runner) -> list[float]:
    """Of every iteration."""
    return runner.message_hub.get_scalar("train/loss").data[0].tolist()


def learned(runner: Runner) -> dict[str, torch.Tensor]:
    """Copies of weights, buffers, optimizer, loss scale and EMA."""
    tensors = named_tensors(learned_state(runner))
    return {name: tensor.detach().clone() for name, tensor in tensors}


def standing(
    machine: Card,
    place: Path,
    size: int,
    batch: int,
    precision: str,
    detector: str = "retinanet",
) -> Callable[[list[dict[str, Any]]], Live]:
    """Makes runs that stand between two iterations, all on the same weights and batch.

    Args:
        machine: Makes them tiny in a rehearsal.
        place: A folder.
        size: Of the images in pixels.
        batch: Images.
        precision: 'float32', 'float16' or 'bfloat16'.
        detector: Of ``bench_runs.DETECTORS``.

    Returns:
        Takes ``custom_hooks``.
    """
    args = Namespace(
        tiny=machine.rehearsed,
        device=machine.device,
        precision=precision,
        warmup=machine.pick(4, 1),
        work_dir=str(place),
    )
    register_all_modules()
    quick_configs()
    # Or it tells how each of the parameters was initialised.
    MMLogger.get_current_instance().setLevel("ERROR")
    model = build_model(detector, args)
    data = demo_mm_inputs(batch, [(3, size, size)] * batch, num_classes=80)
    made: list[Live] = []

    def make(hooks: list[dict[str, Any]]) -> Live:
        optimizer = made[0].runner.optim_wrapper.optimizer if made else None
        made.append(Live(model, hooks, data, args, optimizer))
        return made[-1]

    return make
