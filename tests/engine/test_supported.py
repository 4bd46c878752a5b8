"""What cannot work is refused at the start, on every rank, with a way out."""

import sys
from pathlib import Path

import pytest
import torch
from mmengine.optim import OptimWrapper

from amp_hooks.engine.failures import Failures
from amp_hooks.engine.step_tap import StepTap
from amp_hooks.engine.supported import refuse_unsupported
from tests import helpers, processes, small


class Run:
    """As much of a runner as is looked at."""

    def __init__(self, model=None, wrapper=None, strategy=None):
        self.model = model or small.Small()
        optimizer = torch.optim.SGD(small.Small().parameters(), lr=0.1)
        self.optim_wrapper = wrapper or OptimWrapper(optimizer)
        if strategy is not None:
            self.strategy = strategy


def named(name, *bases):
    return type(name, bases or (object,), {})


def test_what_works():
    refuse_unsupported(None, Run())
    ddp = named("DDPStrategy", named("SingleDeviceStrategy"))()
    refuse_unsupported(None, Run(strategy=ddp))


@pytest.mark.parametrize(
    ("part", "kind", "instead"),
    [
        ("model", "MMDeepSpeedEngineWrapper", "DDPStrategy"),
        ("model", "ColossalAIModelWrapper", "DDPStrategy"),
        ("strategy", "DeepSpeedStrategy", "DDPStrategy"),
        ("strategy", "ColossalAIStrategy", "DDPStrategy"),
        ("wrapper", "ApexOptimWrapper", "AmpOptimWrapper"),
        ("wrapper", "ColossalAIOptimWrapper", "MMDistributedDataParallel"),
    ],
)
@pytest.mark.parametrize("derived", [False, True])
def test_what_does_not(part, kind, instead, derived):
    own = OptimWrapper if part == "wrapper" else object
    cls = named(kind, own)
    cls = named("Users", cls) if derived and part != "wrapper" else cls
    thing = object.__new__(cls)
    if part == "wrapper":
        thing.optimizer = None
    with pytest.raises(NotImplementedError, match=f"{kind}.*Use.*{instead}.*custom"):
        refuse_unsupported(None, Run(**{part: thing}))


def test_a_model_that_runner_has_sharded():
    model = named("MMFullyShardedDataParallel", torch.nn.Module)()
    words = (
        "MMFullyShardedDataParallel as it is: Runner neither saves nor.*FSDPStrategy"
    )
    with pytest.raises(NotImplementedError, match=words):
        refuse_unsupported(None, Run(model))


def test_a_part_that_is_sharded():
    part = named("FullyShardedDataParallel", torch.nn.Module)()
    with pytest.raises(NotImplementedError, match="a part of the model is sharded"):
        refuse_unsupported(None, Run(torch.nn.Sequential(part)))


def test_fully_shard(tmp_path):
    """FSDP2, which no strategy of MMEngine carries."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        from torch.distributed.fsdp import fully_shard
    except ImportError:
        pytest.skip("before torch 2.6")
    else:
        mesh = torch.distributed.init_device_mesh("cpu", (1,))
        model = fully_shard(small.Small(), mesh=mesh)
        with pytest.raises(
            NotImplementedError, match="a parameter DTensor.*fully_shard"
        ):
            refuse_unsupported(None, Run(model))
    finally:
        torch.distributed.destroy_process_group()


def test_colossal_is_refused_by_every_hook():
    cls = named("ColossalAIOptimWrapper", OptimWrapper)
    wrapper = cls(torch.optim.SGD(small.Small().parameters(), lr=0.1))
    with pytest.raises(NotImplementedError, match="ColossalAIOptim.*Use Optim"):
        StepTap(None, Failures()).attach(wrapper)


# --- two ranks --------------------------------------------------------------------
def test_zero_redundancy_optimizer_on_two_ranks(tmp_path):
    """It deadlocked in the first snapshot."""
    program = ["-m", "tests.engine.test_supported", tmp_path]
    processes.two_ranks(*program, "ours", cwd=helpers.ROOT, timeout=200)
    for rank in (0, 1):
        text = (tmp_path / f"{rank}").read_text()
        assert "optimizer ZeroRedundancyOptimizer" in text
        assert "Use the optimizer that it wraps" in text
    processes.two_ranks(*program, "monitor", cwd=helpers.ROOT, timeout=200)
    assert [(tmp_path / f"{rank}").read_text() for rank in (0, 1)] == ["6", "6"]


def main(work_dir, which):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    hooks = dict(
        ours=dict(type="amp_hooks.StabilityHook", panel=None, preflight=None),
        monitor=dict(type="amp_hooks.GradNormMonitorHook"),
    )
    zero = dict(type="ZeroRedundancyOptimizer", optimizer_type="AdamW", lr=0.001)
    rank = torch.distributed.get_rank()
    runner = small.build(
        Path(work_dir),
        hooks=[hooks[which]],
        iters=6,
        wrapper=dict(optimizer=zero),
    )
    try:
        runner.train()
        result = str(runner.iter)
    except NotImplementedError as e:
        result = str(e)
    Path(work_dir, str(rank)).write_text(result)


if __name__ == "__main__":
    main(*sys.argv[1:])
