"""A learning rate that jumps, under DDP on two ranks: ``two_ranks.py WORK_DIR FACTOR``.

Prints for each rank the rollbacks as iteration and target, the mean of the last losses
and a checksum of the weights.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from amp_hooks.engine.runtime import Runtime
from tests import small

# MMEngine picks the rank's GPU without asking whether torch has any.
torch.cuda.set_device = lambda *args: None
torch.set_num_threads(1)


class Listen(small.Hook):
    def __init__(self):
        self.lines = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == 0:
            Runtime.of(runner).listeners.append(self.lines.append)


work_dir, factor = Path(sys.argv[1]), float(sys.argv[2])
suite = dict(
    type="amp_hooks.StabilityHook",
    preflight=None,
    rollback=dict(interval=25, probation=5),
)
seen, listen = small.Seen(), Listen()
hooks = [suite, small.RaiseLR(factor), seen, listen]
runner = small.build(
    work_dir,
    hooks,
    iters=200,
    work_dir=work_dir / "run",
    launcher="pytorch",
    env_cfg=dict(dist_cfg=dict(backend="gloo")),
    cfg=dict(model_wrapper_cfg=dict(type="MMDistributedDataParallel", device_ids=None)),
)
runner.train()
went = [
    (line["iter"], line["target_iter"])
    for line in listen.lines
    if line["event"] == "rollback"
]
mean = sum(seen.losses[-40:]) / 40
weights = sum(float(p.detach().double().sum()) for p in runner.model.parameters())
text = f"rank {dist.get_rank()} | {went} | {mean:.3f} | {weights!r}"
sys.stdout.write(text + "\n")  # at once: the ranks share it

# torch 2.0 aborts a process whose peer has gone.
torch.distributed.barrier()
torch.distributed.destroy_process_group()
