"""Under torchrun: ``python -m gpu_check.one_rank CONFIG OUT``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from gpu_check.machine import this_machine
from gpu_check.operators import prepare


def main() -> None:
    """Train, and say how it went."""
    machine = this_machine()
    prepare(machine.device)
    from mmengine.config import Config

    from gpu_check import runs

    if machine.rehearsed:
        # MMEngine picks the rank's GPU without asking whether there is any.
        torch.cuda.set_device = lambda *args: None
        torch.cuda.device_count = lambda: 1
    runner = runs.train(Config.fromfile(sys.argv[1]))
    (rollback,) = [h for h in runner.hooks if type(h).__name__ == "RollbackHook"]
    result = dict(
        backend=dist.get_backend(),
        model=type(runner.model).__name__,
        losses=runs.losses(runner),
        rollbacks=rollback.rollbacks,
    )
    Path(sys.argv[2]).write_text(json.dumps(result))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
