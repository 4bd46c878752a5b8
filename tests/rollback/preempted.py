"""Runs of six epochs of 16 iterations that are killed and resumed."""

import contextlib
import os
import sys
import uuid
from pathlib import Path

import torch
from mmengine.hooks import Hook
from mmengine.registry import DATA_SAMPLERS, LOOPS
from mmengine.runner import Runner
from torch.utils.data import BatchSampler, Dataset, RandomSampler

from tests import helpers, small

EPOCHS, LENGTH = 6, 16


class Samples(Dataset):
    """Of the small model, each with its number; counts what is read."""

    def __init__(self):
        self.samples, self.read = small.samples(8 * LENGTH), 0

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, i):
        self.read += 1
        return dict(self.samples[i], number=i)


class Numbered(small.Small):
    def forward(self, x, y, number=None, mode="loss"):
        return super().forward(x, y, mode)


@DATA_SAMPLERS.register_module(force=True)
class ByParity(BatchSampler):
    """Groups indices as it reads them, as by aspect ratio."""

    def __init__(self, sampler, batch_size, drop_last=False, **_):
        super().__init__(sampler, batch_size, drop_last)

    def __iter__(self):
        buckets = [], []
        for i in self.sampler:
            bucket = buckets[i % 2]
            bucket.append(i)
            if len(bucket) == self.batch_size:
                yield bucket[:]
                bucket.clear()


@DATA_SAMPLERS.register_module(force=True, name="TorchRandom")
def torch_random(dataset, seed=None, **_):
    return RandomSampler(dataset)


class Killed(Exception):
    pass


class Kill(Hook):
    """In epoch and batch, before it; behind the last batch, before the epoch ends."""

    priority = "HIGHEST"

    def __init__(self, at):
        self.at = at

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if (runner.epoch, batch_idx) == self.at:
            self._kill(runner)

    def after_train_epoch(self, runner):
        done = runner.iter - runner.epoch * len(runner.train_dataloader)
        if (runner.epoch, done) == self.at:
            self._kill(runner)

    def _kill(self, runner):
        for hook in runner.hooks:
            if type(hook).__name__ == "RollbackHook":
                hook._snapshots.collect(5.0)
                hook._snapshots.collect(5.0)
        raise Killed


class Batches(Hook):
    """Number of the batch, and of its samples, by iteration."""

    def __init__(self):
        self.seen, self.begins, self.runner = {}, None, None

    def before_train(self, runner):
        self.begins = runner.iter

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.seen[runner.iter] = batch_idx, data_batch["number"].tolist()

    @property
    def log(self):
        return " ".join(helpers.log(self.runner).split())

    @property
    def read(self):
        return self.runner.train_dataloader.dataset.read


def go(
    work_dir,
    resume,
    kill=None,
    workers=0,
    seed=0,
    checkpoint=None,
    ours=True,
    batch_size=8,
    loop=None,
    launcher="none",
    **loader,
):
    """Train to the end or till killed; what the run has seen."""
    torch.manual_seed(0)
    model, name = Numbered(), uuid.uuid4().hex
    torch.manual_seed(int(uuid.uuid4()) % 2**31 if seed is None else seed)
    if loop is not None:
        LOOPS.register_module(module=loop, force=True)
    rollback = dict(type="amp_hooks.RollbackHook", interval=5, probation=2)
    saver = dict(type="CheckpointHook", by_epoch=False, save_last=False)
    loader.setdefault("sampler", dict(type="DefaultSampler", shuffle=True))
    for part in loader.values():
        part.pop("force", None)
    runner = Runner(
        model=model,
        work_dir=str(work_dir),
        experiment_name=name,
        randomness=dict(seed=seed),
        launcher=launcher,
        env_cfg=dict(dist_cfg=dict(backend="gloo")),
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.05, momentum=0.9)),
        param_scheduler=[
            dict(
                type="CosineAnnealingLR",
                T_max=EPOCHS,
                by_epoch=True,
                convert_to_iter_based=True,
            )
        ],
        train_dataloader=dict(
            dataset=Samples(),
            batch_size=batch_size,
            num_workers=workers,
            persistent_workers=workers > 0,
            collate_fn=dict(type="default_collate"),
            **loader,
        ),
        train_cfg=dict(
            type=loop.__name__ if loop else "EpochBasedTrainLoop", max_epochs=EPOCHS
        ),
        custom_hooks=[rollback] if ours else [],
        resume=resume,
        log_level="WARNING",
        default_hooks=dict(
            checkpoint=dict(saver, **(checkpoint or dict(interval=999)))
        ),
        visualizer=dict(
            type="Visualizer", name=name, vis_backends=[dict(type="LocalVisBackend")]
        ),
        default_scope="mmengine",
        cfg=dict(
            model_wrapper_cfg=dict(type="MMDistributedDataParallel", device_ids=None)
        ),
    )
    seen = Batches()
    seen.runner = runner
    runner.register_hook(seen)
    runner.register_hook(kill if isinstance(kill, Hook) else Kill(kill))
    with contextlib.suppress(Killed):
        runner.train()
    return seen


def run_in_pieces(work_dir, **options):
    """Killed near the end of each of four epochs; all pieces, and the last runner."""
    pieces = [go(work_dir, False, (1, 14), **options)]
    pieces += [go(work_dir, True, (epoch, 14), **options) for epoch in (2, 3, 4)]
    pieces.append(go(work_dir, True, **options))
    return pieces, pieces[-1].runner


def main(work_dir, until):
    """On several ranks: killed in an epoch, or to the end, with what was learned."""
    torch.set_num_threads(1)
    torch.cuda.set_device = lambda device: None
    resume = Path(work_dir, "last_checkpoint").exists()
    kill = None if until == "whole" else (int(until), 6)
    seen = go(work_dir, resume, kill, launcher="pytorch")
    if kill:
        raise SystemExit(1)
    if os.environ["RANK"] == "0":
        end = dict(iter=seen.runner.iter, begins=seen.begins)
        torch.save(dict(end, state=small.state(seen.runner)), f"{work_dir}/end.pth")


if __name__ == "__main__":
    main(*sys.argv[1:])
