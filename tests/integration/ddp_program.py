"""Runs on two ranks under torchrun: ``ddp_program.py CONFIG OUT``."""

import sys
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.runner import Runner

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests import helpers

# MMEngine picks the rank's GPU without asking whether torch has any.
torch.cuda.set_device = lambda *args: None


def main():
    cfg = Config.fromfile(sys.argv[1])
    runner = Runner.from_cfg(cfg)
    runner.train()
    hook = helpers.hook_of(runner, "RollbackHook")
    torch.save(
        dict(
            state=helpers.state(runner),
            rollbacks=hook.rollbacks,
            lr=runner.optim_wrapper.get_lr()["lr"],
            scale=runner.optim_wrapper.loss_scaler.get_scale(),
            iter=runner.iter,
        ),
        f"{sys.argv[2]}.{runner.rank}",
    )


if __name__ == "__main__":
    main()
