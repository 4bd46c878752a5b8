"""A learning rate that jumps, under DDP on two ranks: ``two_ranks.py WORK_DIR FACTOR``.

Prints for each rank the rollbacks as iteration and target, the mean of the last losses,
a checksum of the weights, and what a batch costs with those of now and of the start.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from amp_hooks.engine.condition import Condition, State
from amp_hooks.engine.runtime import Runtime
from tests import small

# MMEngine picks the rank's GPU without asking whether torch has any.
torch.cuda.set_device = lambda *args: None
torch.set_num_threads(1)


class Reduced(small.Small):
    """Its loss waits for the other ranks, as those of mmdet's heads do."""

    def losses(self, features, logits, y):
        number = torch.tensor(float(len(y)))
        if dist.is_initialized():
            dist.all_reduce(number)
            number /= dist.get_world_size()
        loss = super().losses(features, logits, y)["loss_cls"]
        return dict(loss_cls=loss * len(y) / number)


class Listen(small.Hook):
    def __init__(self):
        self.lines, self.costs = [], None

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == 0:
            Runtime.of(runner).listeners.append(self.lines.append)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter == 30:
            ill = Condition(State.ILL, since=0)
            self.costs = Runtime.of(runner).second_opinion(ill)


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
    Reduced,
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
text = f"rank {dist.get_rank()} | {went} | {mean:.3f} | {weights!r} | {listen.costs}"
sys.stdout.write(text + "\n")  # at once: the ranks share it

# torch 2.0 aborts a process whose peer has gone.
torch.distributed.barrier()
torch.distributed.destroy_process_group()
