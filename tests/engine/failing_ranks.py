"""What is ours fails on two ranks: ``failing_ranks.py WORK_DIR all | one``.

``all``: on both, in every event of every hook and inside. For each, and each rank, it
prints what failed, whether the weights are those of stock, and which parts were named.
``one``: on the second rank alone.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from amp_hooks import hooks as all_hooks
from amp_hooks.engine import agreement
from tests import small
from tests.engine import test_failures as table

# MMEngine picks the rank's GPU without asking whether torch has any.
torch.cuda.set_device = lambda *args: None
torch.set_num_threads(1)

WORK_DIR, MODE = Path(sys.argv[1]), sys.argv[2]


def train(hooks, name, then=()):
    runner = small.build(
        WORK_DIR,
        hooks,
        iters=table.ITERS,
        work_dir=WORK_DIR / name,
        launcher="pytorch",
        env_cfg=dict(dist_cfg=dict(backend="gloo")),
        checkpoint=dict(interval=3),
        log_level="WARNING",
        cfg=dict(
            model_wrapper_cfg=dict(type="MMDistributedDataParallel", device_ids=None)
        ),
    )
    for hook in then:
        runner.register_hook(hook)
    runner.train()
    return small.state(runner), table.failures(runner)


def broken_everywhere():
    stock, _ = train([], "stock")
    suite = dict(table.SUITE, preflight=None)
    cases = [
        (getattr(all_hooks, name), event)
        for name in table.HOOKS
        for event in table.events(name)
    ]
    for owner, method in [*cases, *(case[:2] for case in table.INSIDE)]:
        last = table.ELSEWHERE.get(method)
        then = [] if last is None else [table.LastCall(method, last)]
        name, mended = f"{owner.__name__}.{method}", vars(owner).get(method)
        setattr(owner, method, table.breaks([]))
        try:
            learned, told = train([suite], name, then)
        finally:
            if mended is None:
                delattr(owner, method)
            else:
                setattr(owner, method, mended)
        same = small.same(stock, learned)
        parts = ",".join(line["part"] for line in told)  # in rank 0's ledger
        # At once: the ranks share it.
        sys.stdout.write(f"rank {dist.get_rank()} | {name} | {same} | {parts}\n")


def broken_on_one():
    agreement.PATIENCE = 1.0
    owner, after = all_hooks.RollbackHook, all_hooks.RollbackHook.after_record

    def fails(self, runner, *args):
        if runner.iter == 3 and dist.get_rank() == 1:
            raise table.Broken("on purpose")
        return after(self, runner, *args)

    owner.after_record = fails
    train([table.SUITE], "one")


dict(all=broken_everywhere, one=broken_on_one)[MODE]()

# torch 2.0 aborts a process whose peer has gone.
torch.distributed.barrier()
torch.distributed.destroy_process_group()
