"""FlexibleRunner with FSDPStrategy on ranks of a CPU: ``python -m ... MODE DIR``."""

import os
import resource
import signal
import sys
from pathlib import Path

import torch
from mmengine.hooks import Hook
from mmengine.model import MMFullyShardedDataParallel
from mmengine.registry import FUNCTIONS, HOOKS, MODEL_WRAPPERS
from mmengine.runner import FlexibleRunner
from torch import nn

from tests import helpers, small
from tests.count_collectives import Collectives
from tests.rollback import flexible

SUITE = dict(
    type="amp_hooks.StabilityHook",
    boxes=None,
    bad_batch=None,
    rollback=dict(interval=10, probation=1),
)


@MODEL_WRAPPERS.register_module()
class ShardedOnACpu(MMFullyShardedDataParallel):
    """MMEngine gives it the number of a GPU."""

    def __init__(self, module, device_id=None, **options):
        super().__init__(module, device_id=torch.device("cpu"), **options)


@FUNCTIONS.register_module()
def linear_layers(module, recurse, nonwrapped_numel):
    return recurse or isinstance(module, (nn.Linear, nn.Sequential))


@FUNCTIONS.register_module()
def blocks(module, recurse, nonwrapped_numel):
    return recurse or type(module).__name__ in ("BasicBlock", "FPN")


@FUNCTIONS.register_module()
def nothing_inside(module, recurse, nonwrapped_numel):
    return False


class Watch(Hook):
    """What this rank has before each iteration, and the collectives in each."""

    priority = "LOWEST"

    def __init__(self):
        self.states, self.made, self.counts = {}, Collectives(), []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.counts.append(self.made.calls)
        model, optimizer = runner.model, runner.optim_wrapper.optimizer
        state = [*model.named_parameters(), *model.named_buffers()]
        state = {name: tensor.detach().clone() for name, tensor in state}
        for i, of_one in optimizer.state_dict()["state"].items():
            state.update({f"{i}.{key}": t.clone() for key, t in of_one.items()})
        self.states[runner.iter] = state

    def after_train(self, runner):
        self.before_train_iter(runner, 0)


@HOOKS.register_module()
class LooksToo(Hook):
    """A forward pass that no backward one follows: parameters stay whole."""

    priority = "VERY_HIGH"

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        runner.model(data_batch["x"], data_batch["y"], mode="tensor")


@HOOKS.register_module()
class SmallFiles(Hook):
    """As a full disk, for what is saved after iteration 11."""

    priority = "VERY_HIGH"

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.rank == 1 and runner.iter in (11, 12):
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
            limits = (500, most) if runner.iter == 11 else (most, most)
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)


class Raises(small.Small):
    """As code does that is given NaN, within the forward pass."""

    def losses(self, features, logits, y):
        if not torch.isfinite(logits).all():
            raise ValueError("matrix contains invalid numeric entries")
        return super().losses(features, logits, y)


def nan_on_a_shard(at, iters):
    fault = dict(what="gradient", where="*fc_cls.weight", value="nan", rank=1)
    fault.update(at=at, iters=iters)
    return dict(type="amp_hooks.FaultInjectionHook", faults=[fault])


def fp16():
    wrapper = dict(type="amp_hooks.CpuAmpOptimWrapper", dtype="float16")
    wrapper["optimizer"] = dict(type="SGD", lr=0.05, momentum=0.9)
    return dict(wrapper, loss_scale=dict(init_scale=128.0, growth_interval=5))


def half_weights():
    return dict(param_dtype="bfloat16", reduce_dtype="float32", buffer_dtype="float32")


def full_disk(at, rank=1):
    """For the snapshots of an iteration."""
    fault = dict(what="disk", value="full", at=at, iters=10, rank=rank)
    return dict(type="amp_hooks.FaultInjectionHook", faults=[fault])


# Between forward and backward pass, with which FSDP goes back to parts.
WHOLE_MEANWHILE = dict(sharding_strategy="SHARD_GRAD_OP")
# What each mode changes: hooks, and options of the run.
MODES = dict(
    stock=([], {}),
    suite=([SUITE], {}),
    killed=([SUITE], dict(iters=25, every=12)),
    resumed=([SUITE], dict(resume=True)),
    shard=([SUITE, nan_on_a_shard(24, 3)], {}),
    fp16=([SUITE, nan_on_a_shard(24, 3)], dict(wrapper=fp16())),
    half=([SUITE], dict(model=dict(mixed_precision=half_weights()), nan=range(15, 18))),
    monitor=(
        [dict(type="amp_hooks.GradNormMonitorHook"), nan_on_a_shard(24, 3)],
        dict(wrapper=fp16()),
    ),
    rollback=(
        [
            dict(type="amp_hooks.RollbackHook", interval=10, probation=1),
            nan_on_a_shard(24, 3),
        ],
        dict(wrapper=fp16()),
    ),
    looks=(
        [SUITE, dict(type="LooksToo")],
        dict(model=WHOLE_MEANWHILE, nan=range(15, 18)),
    ),
    vote=(
        [dict(SUITE, step_guard=dict(vote=True))],
        dict(model=WHOLE_MEANWHILE, nan=range(15, 18), net=Raises),
    ),
    apart=([SUITE], dict(apart=True, nan=range(15, 18))),
    whole=([SUITE], dict(resume=True, policy=dict(type="nothing_inside"))),
    disk=([SUITE, full_disk(20)], {}),
    disk_of_rank_0=([SUITE, full_disk(20, rank=0)], {}),
    small_files=([SUITE, dict(type="SmallFiles")], dict(every=12)),
    replicas=([SUITE], dict(model=dict(sharding_strategy="NO_SHARD"))),
    flat=([SUITE], dict(model=dict(use_orig_params=False))),
)


def build(work_dir, mode):
    hooks, options = MODES[mode]
    wrapper = dict(type="ShardedOnACpu", **options.get("model", {}))
    linear = dict(type="linear_layers")
    wrapper["auto_wrap_policy"] = options.get("policy", linear)
    optimizer = dict(type="AdamW", lr=0.01)
    return flexible.build(
        work_dir,
        iters=options.get("iters", 40),
        strategy=dict(type="FSDPStrategy", model_wrapper=wrapper),
        optim_wrapper=options.get("wrapper", dict(optimizer=optimizer)),
        custom_hooks=hooks,
        model=options.get("net", small.Small),
        resume=options.get("resume", False),
        every=options.get("every", 10**9),
    )


def build_detector(work_dir, hooks, digits):
    """RetinaNet in FP32; its head is called by methods, which FSDP does not see."""
    options = dict(iters=12, hooks=hooks, ema=False)
    cfg = helpers.make_config("retinanet", Path(digits), work_dir, **options)
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.test_cfg = cfg.test_dataloader = cfg.test_evaluator = None
    cfg.launcher, cfg.env_cfg.dist_cfg = "pytorch", dict(backend="gloo")
    wrapper = dict(type="ShardedOnACpu", auto_wrap_policy=dict(type="blocks"))
    cfg.strategy = dict(type="FSDPStrategy", model_wrapper=wrapper)
    cfg.optim_wrapper = dict(optimizer=dict(type="SGD", lr=0.01, momentum=0.9))
    return FlexibleRunner.from_cfg(cfg)


def main(mode, work_dir, digits=None):
    torch.set_num_threads(1)
    torch.cuda.set_device = lambda device: None
    if digits is None:
        own = os.environ["RANK"] if MODES[mode][1].get("apart") else ""
        runner = build(Path(work_dir, own), mode)
    else:
        runner = build_detector(work_dir, MODES[mode][0], digits)
    if nan := MODES[mode][1].get("nan"):
        runner.register_hook(small.SpoilInputs(at=nan))
    watch, error = Watch(), ""
    runner.register_hook(watch)
    try:
        runner.train()
    except Exception as e:
        if not type(e).__module__.startswith("amp_hooks"):
            raise
        error = str(e)
    end = dict(error=error, iter=runner.iter)
    if not error:
        end.update(states=watch.states, counts=watch.counts)
        end.update(lr=runner.optim_wrapper.get_lr()["lr"])
    torch.save(end, Path(work_dir, f"{mode}.{runner.rank}.pth"))


if __name__ == "__main__":
    main(*sys.argv[1:])
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
