"""FlexibleRunner with each of its strategies, on one rank or more."""

import sys
import uuid
from pathlib import Path

import torch
from mmengine.runner import FlexibleRunner

from tests import small


def build(work_dir, *hooks, iters=45, strategy="SingleDeviceStrategy", **options):
    name = uuid.uuid4().hex
    torch.manual_seed(0)
    if strategy == "DDPStrategy":
        # Its default asks for a GPU.
        wrapper = dict(type="MMDistributedDataParallel", device_ids=None)
        wrapper["broadcast_buffers"] = False
        strategy = dict(type=strategy, model_wrapper=wrapper)
    several = isinstance(strategy, dict)
    rollback = dict(type="amp_hooks.RollbackHook", interval=10, probation=1)
    rollback = options.pop("rollback", rollback)
    ours = [rollback, dict(type="amp_hooks.StepGuardHook")]
    sgd = dict(type="SGD", lr=0.05, momentum=0.9)
    runner = FlexibleRunner(
        model=options.pop("model", small.Small)(),
        work_dir=str(work_dir),
        experiment_name=name,
        strategy=strategy if several else dict(type=strategy),
        launcher="pytorch" if several else "none",
        env_cfg=dict(dist_cfg=dict(backend="gloo")),
        randomness=dict(seed=0),
        optim_wrapper=options.pop("optim_wrapper", dict(optimizer=sgd)),
        param_scheduler=[dict(type="PolyLR", by_epoch=False, end=60)],
        train_dataloader=dict(
            dataset=small.samples(),
            batch_size=8,
            num_workers=0,
            collate_fn=dict(type="default_collate"),
            sampler=dict(type="InfiniteSampler", shuffle=True),
        ),
        train_cfg=dict(by_epoch=False, max_iters=iters),
        custom_hooks=options.pop("custom_hooks", ours),
        log_level="WARNING",
        default_hooks=dict(
            checkpoint=dict(
                type="CheckpointHook",
                by_epoch=False,
                save_last=False,
                interval=options.pop("every", 10**9),
            )
        ),
        visualizer=dict(
            type="Visualizer", name=name, vis_backends=[dict(type="LocalVisBackend")]
        ),
        default_scope="mmengine",
        **options,
    )
    for hook in hooks:
        runner.register_hook(hook)
    return runner


def main(work_dir, resume):
    """On two ranks: NaN on one of them, then to the end."""
    torch.set_num_threads(1)
    torch.cuda.set_device = lambda device: None
    options = dict(strategy="DDPStrategy", resume=resume == "resume")
    bad = small.SpoilInputs(at=range(15, 19))
    runner = build(work_dir, bad, iters=50 if options["resume"] else 45, **options)
    runner.train()
    end = dict(
        iter=runner.iter,
        state=small.state(runner),
        lr=runner.optim_wrapper.get_lr()["lr"],
    )
    torch.save(end, Path(work_dir, f"end.{runner.rank}.pth"))


if __name__ == "__main__":
    main(*sys.argv[1:])
