"""Runs on two ranks under torchrun: ``ddp_program.py CONFIG OUT``."""

import os
import sys
from pathlib import Path

import torch
from mmdet.models import RetinaNet
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

sys.path.insert(0, str(Path(__file__).parents[2]))
from amp_hooks.engine.runtime import Runtime
from tests import helpers
from tests.count_collectives import Collectives

# MMEngine picks the rank's GPU without asking whether torch has any.
torch.cuda.set_device = lambda *args: None


@MODELS.register_module()
class ReducingRetinaNet(RetinaNet):
    """Averages its number of positives, as FCOS, ATSS and DETR do."""

    def loss(self, *args, **kwargs):
        losses = super().loss(*args, **kwargs)
        torch.distributed.all_reduce(torch.ones(1))
        return losses


class CountCollectives(Hook):
    """Collectives by iteration.

    After ``jump`` iterations the run stands at 1,000,000.
    """

    priority = 0

    def __init__(self, jump):
        self.made, self.per_iter, self.jump = Collectives(), [], jump

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.per_iter.append(self.made.calls)
        if runner.iter == self.jump:
            runner.train_loop._iter = 10**6

    def after_train(self, runner):
        self.per_iter.append(self.made.calls)


def main():
    Path(f"{sys.argv[2]}.pid.{os.environ['RANK']}").write_text(str(os.getpid()))
    cfg = Config.fromfile(sys.argv[1])
    runner = Runner.from_cfg(cfg)
    count = CountCollectives(cfg.get("jump_after"))
    runner.register_hook(count)
    runner.train()
    hooks = {type(h).__name__: h for h in runner.hooks}
    result = dict(
        state=helpers.state(runner),
        losses=helpers.losses(runner),
        lr=runner.optim_wrapper.get_lr()["lr"],
        iter=runner.iter,
        collectives=[b - a for a, b in zip(count.per_iter, count.per_iter[1:])],
    )
    if "RollbackHook" in hooks:
        result["rollbacks"] = hooks["RollbackHook"].rollbacks
    if "LossScaleMonitorHook" in hooks:
        recorder = Runtime.of(runner).recorder
        result["records"] = [
            (r.iter, r.verdict.value, r.ranks) for r in recorder.records
        ]
        result["transfers"] = recorder.transfers
    if hasattr(runner.optim_wrapper, "loss_scaler"):
        result["scale"] = runner.optim_wrapper.loss_scaler.get_scale()
    torch.save(result, f"{sys.argv[2]}.{runner.rank}")


if __name__ == "__main__":
    main()
    # torch 2.0 aborts a process whose peer has gone.
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
