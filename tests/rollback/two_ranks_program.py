"""Two ranks, a model of 100 MB, a rollback: ``two_ranks_program.py OUT``."""

import os
import sys
from pathlib import Path

import torch
from mmengine.runner import Runner
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2]))
from amp_hooks.rollback.host_copy import host_bytes
from amp_hooks.rollback.run_state import learned_state
from tests import helpers, small

# MMEngine picks the rank's GPU without asking whether torch has any.
torch.cuda.set_device = lambda *args: None

out, rank = Path(sys.argv[1]), int(os.environ["RANK"])


class Large(small.Small):
    """Weights of 100 MB that every iteration uses; batches are each rank's own."""

    def __init__(self):
        super().__init__()
        self.backbone.append(nn.Linear(16, 16))
        self.again = self.backbone[1]  # buffers under two names
        self.wide = nn.Parameter(torch.zeros(25_000_000))

    def losses(self, features, logits, y):
        losses = super().losses(features, logits, y)
        return dict(losses, loss_wide=(self.wide * 1e-9).sum())


def resident():
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Watch(small.Hook):
    priority = 1

    def __init__(self):
        self.states, self.found = {}, {}

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        state = learned_state(runner)
        if runner.iter == 3:  # what cannot be sent to another process
            runner.optim_wrapper.optimizer.param_groups[0]["note"] = lambda: None
        if runner.iter in (5, 13):  # what the snapshot holds, and after the rollback
            model = state["model"]
            sums = {f"sum.{name}": t.double().sum() for name, t in model.items()}
            small_ones = {n: t.clone() for n, t in model.items() if n != "wide"}
            self.states[runner.iter] = {**small_ones, **sums}
        if runner.iter == 11:  # one proven, one on probation
            hook = helpers.hook_of(runner, "RollbackHook")
            items = [vars(entry.item) for entry in hook._ring.entries]
            self.found = dict(
                state_bytes=host_bytes(state), held=host_bytes(items), rss=resident()
            )

    def after_train_iter(self, runner, *args, **kwargs):
        # Files are written in the background: wait for each.
        helpers.hook_of(runner, "RollbackHook")._snapshots.collect(wait=60)


watch = Watch()
runner = small.build(
    out / f"work{rank}",
    [
        small.SpoilInputs([12] if rank else []),
        dict(type="amp_hooks.RollbackHook", interval=5, probation=3, patience=1),
        dict(type="amp_hooks.StepGuardHook"),
        watch,
    ],
    model=Large,
    iters=16,
    work_dir=out / "work",
    cfg=dict(model_wrapper_cfg=dict(type="MMDistributedDataParallel", device_ids=None)),
    kind=lambda **config: Runner(
        launcher="pytorch", env_cfg=dict(dist_cfg=dict(backend="gloo")), **config
    ),
)
runner.train()
lines = helpers.ledger(runner, "rollback") if rank == 0 else []
before, after = watch.states[5], watch.states[13]
torch.save(
    dict(
        watch.found,
        rollbacks=[[line["iter"], line["target_iter"]] for line in lines],
        differing=[n for n in before if not torch.equal(before[n], after[n])],
        bn=before["backbone.1.running_mean"],
    ),
    out / f"rank{rank}.pth",
)

# torch 2.0 aborts a process whose peer has gone.
torch.distributed.barrier()
torch.distributed.destroy_process_group()
