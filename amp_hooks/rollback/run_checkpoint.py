"""The checkpoint that MMEngine would save of a run, without saving it."""

from __future__ import annotations

import time
from typing import Any

import mmengine
from mmengine.runner import Runner
from mmengine.utils import get_git_hash

from ..engine.model import bare_model


class RunCheckpoint:
    """Makes what ``Runner.save_checkpoint`` writes, between two iterations.

    ``Runner.save_checkpoint`` formats the whole config and asks git for its version at
    every call, which takes longer than copying a detector; here that is done once.
    """

    def __init__(self, runner: Runner) -> None:
        self._meta = dict(
            cfg=runner.cfg.pretty_text,
            seed=runner.seed,
            experiment_name=runner.experiment_name,
            mmengine_version=mmengine.__version__ + get_git_hash(),
        )

    def make(self, runner: Runner) -> dict[str, Any]:
        """The checkpoint, with tensors that still are the run's own.

        Every hook adds its part to it, as to any checkpoint.
        """
        now = time.strftime("%Y%m%d_%H%M%S", time.localtime())
        meta = dict(self._meta, epoch=runner.epoch, iter=runner.iter, time=now)
        if hasattr(runner.train_dataloader.dataset, "metainfo"):
            meta["dataset_meta"] = runner.train_dataloader.dataset.metainfo
        checkpoint = dict(
            meta=meta,
            state_dict=bare_model(runner).state_dict(),
            message_hub=runner.message_hub.state_dict(),
            optimizer=runner.optim_wrapper.state_dict(),
        )
        schedulers: Any = runner.param_schedulers
        if isinstance(schedulers, dict):
            checkpoint["param_schedulers"] = {
                name: [s.state_dict() for s in own] for name, own in schedulers.items()
            }
        elif schedulers is not None:
            checkpoint["param_schedulers"] = [s.state_dict() for s in schedulers]
        runner.call_hook("before_save_checkpoint", checkpoint=checkpoint)
        return checkpoint
