"""A learning rate that jumps, a classifier that a hook writes, one bad batch.

On two ranks:

``two_ranks.py WORK_DIR FACTOR KIND``

Prints for each rank the rollbacks as iteration and target, and what was taken back of
them as iteration and factor of the learning rate, the mean of the last losses,
a checksum of the weights, and what a batch costs with those of now and of the start.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed import all_reduce

from amp_hooks.engine.condition import Condition, State
from amp_hooks.engine.runtime import Runtime
from tests import small

# MMEngine picks the rank's GPU without asking whether torch has any.
torch.cuda.set_device = lambda *args: None
torch.set_num_threads(1)


class Reduced(small.Small):
    """Its loss waits for the other ranks, as those of mmdet's heads do."""

    def reduce(self, number):
        if dist.is_initialized():
            dist.all_reduce(number)
            number /= dist.get_world_size()

    def losses(self, features, logits, y):
        number = torch.tensor(float(len(y)))
        self.reduce(number)
        loss = super().losses(features, logits, y)["loss_cls"]
        return dict(loss_cls=loss * len(y) / number)


class ReducedByName(Reduced):
    def reduce(self, number):
        all_reduce(number)
        number /= dist.get_world_size()


class HeadOfOneLayer(small.Head):
    def forward(self, features, y):
        return self.loss_cls(self.fc_cls(features).float(), y)


class Parts(small.Small):
    """Each is called as a module, for MMSeparateDistributedDataParallel."""

    def __init__(self):
        super().__init__()
        self.bbox_head = HeadOfOneLayer()

    def forward(self, x, y, mode="loss"):
        return dict(loss_cls=self.bbox_head(self.backbone(x), y))


class Write(small.Hook):
    """The classifier is the same for good, in each iteration from some on."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter >= 90:
            head = runner.model.module.bbox_head.fc_cls
            with torch.no_grad():
                head.weight.zero_()
                head.bias.copy_(torch.tensor([6.0, 0.0, 0.0, 0.0]))


class Spike(small.Hook):
    """The loss of one batch of one rank, finite."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        here = runner.iter == 160 and dist.get_rank() == 1
        runner.model.module.factor = 5000.0 if here else 1.0


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


work_dir, factor, kind = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
ddp = dict(type="MMDistributedDataParallel", device_ids=None)
kinds = dict(
    reduced=Reduced,
    by_name=ReducedByName,
    parts=Parts,
    written=Reduced,
    rise=small.Wide,
    step=small.Scaled,
)
model = kinds[kind]
if kind == "parts":
    ddp = dict(ddp, type="MMSeparateDistributedDataParallel", broadcast_buffers=True)
suite = dict(
    type="amp_hooks.StabilityHook",
    preflight=None,
    rollback=dict(interval=25, probation=5),
)
seen, listen = small.Seen(), Listen()
rises = dict(rise=120, step=40).get(kind, 60)
hooks = [suite, small.RaiseLR(factor, rises), seen, listen]
hooks += [Write()] * (kind == "written") + [Spike()] * (kind == "step")
more = dict()
if kind == "rise":
    # Nothing is proven yet when it jumps, and the loss does not leave its range.
    suite.pop("rollback")
    more = dict(wrapper=dict(optimizer=dict(type="Adam", lr=1e-3)))
runner = small.build(
    work_dir,
    hooks,
    model,
    iters=200,
    work_dir=work_dir / "run",
    launcher="pytorch",
    env_cfg=dict(dist_cfg=dict(backend="gloo")),
    cfg=dict(model_wrapper_cfg=ddp),
    **more,
)
runner.train()
went = [
    (line["iter"], line.get("target_iter", line["lr_factor"]))
    for line in listen.lines
    if line["event"] in ("rollback", "recover")
]
mean = sum(seen.losses[-40:]) / 40
weights = sum(float(p.detach().double().sum()) for p in runner.model.parameters())
text = f"rank {dist.get_rank()} | {went} | {mean:.3f} | {weights!r} | {listen.costs}"
sys.stdout.write(text + "\n")  # at once: the ranks share it

# torch 2.0 aborts a process whose peer has gone.
torch.distributed.barrier()
torch.distributed.destroy_process_group()
