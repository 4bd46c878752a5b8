"""A killed run goes on from the newest verified checkpoint."""

import os
import pickle
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer
from mmengine.runner import find_latest_checkpoint

from amp_hooks.engine.safe_load import allow_mmengine_checkpoints
from amp_hooks.engine.safe_read import read_safely
from amp_hooks.engine.tensors import nonfinite_names
from amp_hooks.engine.torch_api import TORCH
from tests import helpers, processes

ROOT = helpers.ROOT
CLS = "bbox_head.retina_cls.weight"


def suite(at, **rollback):
    return [
        *([helpers.fault("parameter", at, where=CLS)] if at else []),
        *helpers.SUITE[:4],
        dict(
            type="amp_hooks.RollbackHook", **{"interval": 4, "probation": 0, **rollback}
        ),
        dict(type="amp_hooks.StabilityPanelHook", interval=2),
    ]


def wait_for(condition, process, seconds=120):
    end = time.time() + seconds
    while time.time() < end:
        if condition():
            return
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.02)
    raise AssertionError("waited too long")


# scripts/kill_test.py does it in the other loop, again and again.
@helpers.NEEDS_FP16
@pytest.mark.parametrize("loop", [dict(epochs=10**6)], ids=["epoch"])
def test_sigkill_after_the_first_rollback_then_resume(digits, tmp_path, loop):
    """A real process, killed for real; then ``--resume`` and nothing else."""
    work_dir = tmp_path / "work"
    cfg = helpers.make_config(
        "retinanet", digits, work_dir, hooks=suite(at=[5]), **loop
    )
    cfg.custom_imports = dict(imports=["tests.helpers"])
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.dump(tmp_path / "config.py")
    train = processes.train(tmp_path / "config.py", "--work-dir", work_dir)
    with processes.start(*train) as process:
        after_rollback = work_dir / "rollback" / "iter_6.pth"
        wait_for(after_rollback.exists, process)
        wait_for(lambda: "iter_6" in pointer(work_dir), process)
        process.send_signal(signal.SIGKILL)
        process.wait()
    newest = find_latest_checkpoint(str(work_dir))
    saved = torch_load(newest)
    iteration = saved["meta"]["iter"]
    policy = saved["amp_hooks"]["RollbackHook"]
    assert policy["rollbacks"] == [[5, 4, "STATE_NONFINITE", 0]]
    assert policy["lr"]["total"] == 0.1
    assert nonfinite_names(saved["state_dict"]) == []
    assert nonfinite_names(saved["optimizer"]) == []

    stop = iteration + 3
    loop = dict(iters=stop) if "iters" in loop else dict(epochs=1)
    options = [f"train_cfg.max_iters={stop}"]
    if "epochs" in loop:
        options = [f"train_cfg.max_epochs={saved['meta']['epoch'] + 1}"]
    # The script as a user calls it, in a fresh process.
    processes.fork(*train[1:], "--resume", "--cfg-options", *options)
    events = [
        line
        for path in sorted(work_dir.glob("*/stability.jsonl"))
        for line in helpers.read_ledger(path)
    ]
    (resume,) = [e for e in events if e["event"] == "resume"]
    assert resume["iter"] == iteration
    assert (resume["rollbacks"], resume["lr_factor"]) == (1, 0.1)
    final = torch_load(find_latest_checkpoint(str(work_dir)))
    assert final["meta"]["iter"] > iteration
    policy = final["amp_hooks"]["RollbackHook"]
    assert policy["rollbacks"] == [[5, 4, "STATE_NONFINITE", 0]]
    assert policy["lr"]["total"] == 0.1


def pointer(work_dir):
    path = Path(work_dir) / "last_checkpoint"
    return path.read_text() if path.exists() else ""


def torch_load(path):
    allow_mmengine_checkpoints()
    return read_safely(path, map_location="cpu")


def test_everything_is_kept(build, tmp_path):
    """Iteration, weights, optimizer, loss scale, EMA, LR and rollback count."""
    work = dict(work_dir=tmp_path / "work", iters=9)
    first = build("retinanet", hooks=suite(at=[5]), **work)
    first.train()
    # What the run was at iteration 8 is in the newest rollback checkpoint.
    path = tmp_path / "work" / "rollback" / "iter_8.pth"
    saved = torch_load(path)
    second = build(
        "retinanet",
        hooks=suite(at=[]),
        **dict(work, iters=8),
        options=dict(resume=True, load_from=str(path)),
    )
    second.train()
    assert second.iter == 8
    wrapper = second.optim_wrapper
    assert wrapper.get_lr()["lr"][0] == saved["optimizer"]["param_groups"][0]["lr"]
    assert wrapper.get_lr()["lr"][0] < 0.0002
    assert wrapper.loss_scaler.get_scale() == saved["optimizer"]["loss_scaler"]["scale"]
    rollback = helpers.hook_of(second, "RollbackHook")
    assert (rollback.rollbacks, rollback.total_lr_factor) == (1, 0.1)
    state = helpers.state(second)
    # mmengine writes the EMA weights as state_dict and the live ones as the EMA's.
    for name, value in saved["ema_state_dict"].items():
        if name.startswith("module."):
            assert torch.equal(state["model." + name[7:]], value), name
    moments = saved["optimizer"]["state"]
    for i, of_parameter in wrapper.optimizer.state_dict()["state"].items():
        for key, value in of_parameter.items():
            assert torch.equal(value, moments[i][key])


@pytest.mark.parametrize("loop", [dict(iters=8), dict(epochs=1)], ids=["iter", "epoch"])
def test_random_numbers_go_on(build, tmp_path, loop):
    """Python's, numpy's and torch's, from where the snapshot was taken."""

    class Draw(Hook):
        priority = "LOWEST"

        def __init__(self):
            self.drawn = {}

        def before_train_iter(self, runner, batch_idx, data_batch=None):
            numbers = random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002
            self.drawn[runner.iter] = numbers

    draws = []
    hooks = [dict(type="amp_hooks.RollbackHook", interval=4, probation=0, keep=3)]
    for options in (
        {},
        dict(load_from=str(tmp_path / "rollback/iter_4.pth"), resume=True),
    ):
        runner = build(
            "retinanet", hooks=hooks, work_dir=tmp_path, options=options, **loop
        )
        draw = Draw()
        runner.register_hook(draw)
        runner.train()
        draws.append(draw.drawn)
    first, second = draws
    assert min(second) == 4
    assert len(set(first.values())) == len(first) >= 8
    assert {i: first[i] for i in second if i in first} == {
        i: second[i] for i in second if i in first
    }


@pytest.mark.skipif(TORCH < (2, 6), reason="it loads anything")
def test_without_us_torch_refuses_a_stock_checkpoint(build, tmp_path):
    """The failure that this cures: mmengine#1650, #1655."""
    build("retinanet", iters=1, work_dir=tmp_path / "w").train()
    code = (
        "import sys, torch\n"
        "import mmengine.logging\n"
        f"torch.load({str(tmp_path / 'w' / 'iter_1.pth')!r})"
    )
    done = processes.code(code, status=1)
    assert "HistoryBuffer" in done.stderr
    assert torch_load(tmp_path / "w" / "iter_1.pth")["meta"]["iter"] == 1


def test_rollbacks_are_counted_over_a_resume(build, tmp_path):
    from amp_hooks import TrainingDivergedError

    work = dict(work_dir=tmp_path / "work")
    hooks = suite(at=[5, 9], max_rollbacks=1)
    build("retinanet", hooks=hooks, iters=8, **work).train()
    second = build("retinanet", hooks=hooks, iters=20, **work)
    second._resume = True
    with pytest.raises(TrainingDivergedError, match="iteration 9.*1 rollback,"):
        second.train()


def test_loads_without_the_hooks_and_plain_checkpoints_load_with_them(build, tmp_path):
    with_hooks = dict(work_dir=tmp_path / "a", iters=5)
    build("retinanet", hooks=suite(at=[]), **with_hooks).train()
    plain = build("retinanet", hooks=[], **dict(with_hooks, iters=7))
    plain._resume = True
    plain.train()
    assert plain.iter == 7

    without = dict(work_dir=tmp_path / "b", iters=5)
    build("retinanet", hooks=[], **without).train()
    guarded = build("retinanet", hooks=suite(at=[]), **dict(without, iters=7))
    guarded._resume = True
    guarded.train()
    assert guarded.iter == 7
    assert helpers.hook_of(guarded, "RollbackHook").rollbacks == 0


def test_state_of_another_version_does_not_stop_a_resume(build, tmp_path):
    run = dict(work_dir=tmp_path / "w", hooks=helpers.SUITE)
    build("retinanet", iters=4, **run).train()
    path = find_latest_checkpoint(str(tmp_path / "w"))
    saved = torch_load(path)
    assert {"LossScaleMonitorHook", "ClsScoreMonitorHook"} <= set(saved["amp_hooks"])
    saved["amp_hooks"] = {name: dict(old=3) for name in saved["amp_hooks"]}
    torch.save(saved, path)
    resumed = build(
        "retinanet", iters=6, options=dict(resume=True, log_level="WARNING"), **run
    )
    resumed.train()
    assert resumed.iter == 6
    log = helpers.log(resumed)
    assert "LossScaleMonitorHook could not take back its state" in log
    assert "RollbackHook could not take back its state" in log


class Foreign:
    """Pickles as a call of a function that no checkpoint needs."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "foreign",
    [
        Foreign(os.system, "true"),
        Foreign(eval, "1 + 1"),
        Foreign(getattr, pickle.Unpickler, "load"),
        Foreign(getattr, HistoryBuffer, "__init__"),
        Foreign(getattr, HistoryBuffer, "_statistics_methods"),
    ],
    ids=lambda f: f"{f.call[0].__name__}-{f.call[1][-1]}",
)
def test_weights_only_protection_stays_on(tmp_path, foreign):
    """A foreign global, and getattr for anything but the log history's methods."""
    allow_mmengine_checkpoints()
    path = tmp_path / "foreign.pth"
    torch.save({"state_dict": {}, "message_hub": foreign}, path)
    with pytest.raises((pickle.UnpicklingError, AttributeError)):
        read_safely(path)


def test_getattr_serves_the_log_history(tmp_path):
    allow_mmengine_checkpoints()
    path = tmp_path / "stock.pth"
    torch.save({"x": Foreign(getattr, HistoryBuffer, "mean")}, path)
    assert read_safely(path)["x"] is HistoryBuffer.mean


SCHEDULERS = [
    dict(type="MultiStepLR", milestones=[2], gamma=0.1),
    dict(
        type="CosineRestartLR", periods=[3, 3], restart_weights=[1, 0.5], eta_min=1e-5
    ),
    dict(type="OneCycleLR", eta_max=0.01, total_steps=20),
]


@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda s: s["type"])
def test_resume_with_schedulers(build, tmp_path, scheduler):
    """Some schedulers put functions of theirs into the checkpoint."""
    options = {"param_scheduler": [dict(scheduler, by_epoch=False)]}
    work = dict(work_dir=tmp_path / "work", options=options)
    hooks = [dict(type="amp_hooks.RollbackHook", interval=2)]
    build("retinanet", iters=3, hooks=hooks, **work).train()
    runner = build("retinanet", iters=5, hooks=hooks, **work)
    runner._resume = True
    runner.train()
    assert runner.iter == 5


def test_config_survives_a_dump(digits, tmp_path):
    cfg = helpers.make_config("retinanet", digits, tmp_path, hooks=suite(at=[]))
    cfg.dump(tmp_path / "c.py")
    assert Config.fromfile(tmp_path / "c.py").custom_hooks == cfg.custom_hooks
