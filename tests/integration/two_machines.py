"""Trains on each of several ranks: ``two_machines.py OUT WORK_DIR ITERS [resume]``."""

import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests import helpers, small

AT, CULPRIT = 12, 3
INTERVAL = 5

# MMEngine picks the rank's GPU without asking whether torch has any.
torch.cuda.set_device = lambda *args: None


class OwnBatches(small.Hook):
    """Each rank trains on other numbers."""

    priority = 0

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        data_batch["x"] += 0.01 * int(os.environ["RANK"])


def main(out, work_dir, iters, resume=""):
    """What this rank has in the end goes to a file."""
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    spoils = rank == CULPRIT and not resume
    rollback = dict(interval=INTERVAL, probation=0, warmup_iters=0, patience=1)
    seen = small.Seen()
    runner = small.build(
        Path(out),
        [
            small.SpoilInputs([AT] if spoils else []),
            OwnBatches(),
            seen,
            dict(type="amp_hooks.StabilityHook", rollback=rollback, preflight=None),
        ],
        iters=int(iters),
        work_dir=work_dir,
        resume=bool(resume),
        launcher="pytorch",
        log_level="WARNING",
        env_cfg=dict(dist_cfg=dict(backend="gloo")),
        cfg=dict(
            model_wrapper_cfg=dict(type="MMDistributedDataParallel", device_ids=None)
        ),
    )
    runner.train()
    # Buffers are each rank's own.
    weights = {name: p.detach() for name, p in runner.model.module.named_parameters()}
    end = dict(iter=runner.iter, weights=weights, losses=seen.losses)
    if Path(runner.log_dir, "stability.jsonl").exists():
        end["ledger"] = helpers.ledger(runner)
    torch.save(end, Path(out, f"rank{rank}.pth"))


if __name__ == "__main__":
    main(*sys.argv[1:])
