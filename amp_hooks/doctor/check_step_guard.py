"""Does an iteration that overflows leave no trace, in a real Runner?"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor
from torch.utils.data import DataLoader

from ..errors import UnsupportedError
from .rows import BROKEN, Row
from .tiny import TinyModel, images, optim_wrapper

_ITERS, _OVERFLOWS = 6, 3
_HOOK = dict(type="amp_hooks.StepGuardHook")
_TOO_LARGE = 3e38  # in FP16 and after a convolution in any precision
_REMEDY = (
    "Take versions that were tested together (page Get started of the documentation), "
    "and please report it with the output of this command."
)


class Watch(Hook):
    """Makes a batch overflow; copies what is learned before and after it."""

    priority = "LOWEST"

    def __init__(self) -> None:
        self.before: dict[str, Tensor] = {}
        self.changed: dict[int, list[str]] = {}
        self.losses: list[float] = []

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        """Copy; spoil the batch."""
        self.before = _state(runner)
        if runner.iter == _OVERFLOWS:
            data_batch["inputs"].fill_(_TOO_LARGE)

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Any = None,
    ) -> None:
        """Compare, bit by bit."""
        after = _state(runner)
        self.changed[runner.iter] = [
            name for name, old in self.before.items() if not old.equal(after[name])
        ]
        self.losses.append(float(outputs["loss"].detach()))


def check() -> Iterator[Row]:
    """In FP16; in BF16 where that cannot be rehearsed."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        watch, precision = _train(device, "float16"), "FP16"
    except UnsupportedError:
        watch, precision = _train(device, "bfloat16"), "BF16"
    bad = [i for i, loss in enumerate(watch.losses) if not math.isfinite(loss)]
    left = watch.changed[_OVERFLOWS]
    learned = [i for i in range(_OVERFLOWS + 1, _ITERS) if watch.changed[i]]
    found = (
        f"{precision}, {device}: iteration {_OVERFLOWS} of {_ITERS} overflowed, "
        f"{len(watch.before)} tensors, {len(left)} changed by it"
    )
    if bad == [_OVERFLOWS] and not left and learned:
        yield Row("StepGuardHook", found)
        return
    if bad != [_OVERFLOWS]:
        found += f"; losses that are not finite in iterations {bad}"
    if left:
        found += f": {', '.join(left[:3])}"
    if not learned:
        found += "; nothing was learned afterwards"
    yield Row("StepGuardHook", found, BROKEN, _REMEDY)


def _train(device: str, precision: str) -> Watch:
    torch.manual_seed(0)
    inputs, labels = images(4 * _ITERS)
    samples: Any = [dict(inputs=x, labels=y) for x, y in zip(inputs, labels)]
    watch = Watch()
    with tempfile.TemporaryDirectory() as work_dir:
        runner = Runner(
            model=TinyModel(),
            work_dir=work_dir,
            train_dataloader=DataLoader(samples, batch_size=4),
            train_cfg=dict(by_epoch=False, max_iters=_ITERS),
            optim_wrapper=optim_wrapper(device, precision),
            default_hooks=dict(checkpoint=None, logger=None, param_scheduler=None),
            custom_hooks=[_HOOK, watch],
            log_level="ERROR",
            default_scope="mmengine",
            experiment_name="amp_hooks_doctor",
        )
        runner.train()
    return watch


def _state(runner: Runner) -> dict[str, Tensor]:
    """Weights, BatchNorm statistics, momentum."""
    model, optimizer = runner.model, runner.optim_wrapper.optimizer
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for name, weight in model.named_parameters():
        momentum = optimizer.state.get(weight, {}).get("momentum_buffer")
        if momentum is not None:
            state[f"momentum of {name}"] = momentum.clone()
    return state
