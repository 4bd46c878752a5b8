import math
import os
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook

from amp_hooks import TrainingDivergedError
from amp_hooks.core.finite import nonfinite_names
from amp_hooks.snapshot import Snapshot
from tests import helpers

LOOPS = [dict(iters=8), dict(epochs=1)]  # 24 images, 2 a batch: 12 iterations
BN = "backbone.bn1.running_mean"
CLS = "bbox_head.retina_cls.weight"


def rollback(**kwargs):
    return dict(type="amp_hooks.RollbackHook", **{"interval": 3, **kwargs})


def pointer_of(runner):
    return (Path(runner.work_dir) / "last_checkpoint").read_text()


def nan_weight(at, **more):
    return helpers.fault("parameter", at, where=CLS, **more)


@pytest.mark.parametrize("loop", LOOPS, ids=["iter", "epoch"])
def test_natural_overflow_is_survived(build, loop):
    """The hot config: FP16 overflows by itself, without an injected fault."""
    hooks = [rollback(interval=1000, lr_factor=0.01), *helpers.SUITE[:4]]
    options = {"optim_wrapper.optimizer.lr": 0.3}
    loop = dict(iters=20) if "iters" in loop else dict(epochs=2)
    stock = build("faster_rcnn_hot", **loop, options=options)
    stock.train()
    assert not math.isfinite(helpers.losses(stock)[-1])

    runner = build("faster_rcnn_hot", **loop, options=options, hooks=hooks)
    runner.train()
    assert math.isfinite(helpers.losses(runner)[-1])
    assert nonfinite_names(helpers.state(runner)) == []
    events = helpers.ledger(runner, "rollback")
    assert [e["verdict"] for e in events] == ["FORWARD_NONFINITE"] * len(events)
    assert 1 <= len(events) <= 3
    assert events[0]["target_iter"] == 0


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("loop", LOOPS, ids=["iter", "epoch"])
def test_poisoned_batchnorm_goes_back_at_once(build, loop, precision):
    """One infinite batch leaves BatchNorm infinite for ever (pytorch#90342)."""
    fault = helpers.infinite_images(5)
    stock = build("retinanet", **loop, precision=precision, hooks=[fault])
    stock.train()
    assert f"model.{BN}" in nonfinite_names(helpers.state(stock), limit=10**6)

    runner = build("retinanet", **loop, precision=precision, hooks=[fault, rollback()])
    runner.train()
    assert nonfinite_names(helpers.state(runner)) == []
    (event,) = helpers.ledger(runner, "rollback")
    assert (event["iter"], event["target_iter"]) == (5, 3)
    assert event["verdict"] == "STATE_NONFINITE"
    assert any(BN.rsplit(".", 1)[0] in name for name in event["nonfinite_state"])
    # The position in the run went on: no batch was replayed, no iteration lost.
    assert runner.iter == (8 if "iters" in loop else 12)


def test_restores_bit_for_bit_and_lowers_scale_and_lr(build, monkeypatch):
    seen = {}
    take, restore = Snapshot.take.__func__, Snapshot.restore

    def spy_take(cls, runner):
        seen[runner.iter] = helpers.state(runner)
        return take(cls, runner)

    def spy_restore(snapshot, runner):
        lr_before = [g["lr"] for g in runner.optim_wrapper.param_groups]
        restore(snapshot, runner)
        now = helpers.state(runner)
        assert now.keys() == seen[snapshot.iter].keys()
        assert all(torch.equal(v, seen[snapshot.iter][k]) for k, v in now.items())
        assert [g["lr"] for g in runner.optim_wrapper.param_groups] == lr_before
        assert all(p.grad is None for p in runner.model.parameters())
        seen["restored"] = snapshot.iter

    monkeypatch.setattr(Snapshot, "take", classmethod(spy_take))
    monkeypatch.setattr(Snapshot, "restore", spy_restore)
    runner = build(
        "retinanet",
        iters=6,
        hooks=[
            nan_weight(5),
            rollback(scale_factor=0.25, lr_factor=0.5),
        ],
        options={"optim_wrapper.loss_scale": dict(init_scale=256.0, _delete_=True)},
    )
    runner.train()
    assert seen["restored"] == 3
    (event,) = helpers.ledger(runner, "rollback")
    assert event["scale"] == 64.0
    assert event["lr_factor"] == 0.5
    # The cosine schedule goes on at half its height.
    undisturbed = build("retinanet", iters=6)
    undisturbed.train()
    lr, expected = (r.optim_wrapper.get_lr()["lr"][0] for r in (runner, undisturbed))
    assert lr == pytest.approx(0.5 * expected, rel=1e-12)


def test_a_static_loss_scale_is_lowered_too(build):
    runner = build(
        "retinanet",
        iters=7,
        hooks=[nan_weight(4), rollback()],
        options={"optim_wrapper.loss_scale": 128.0},
    )
    runner.train()
    assert runner.optim_wrapper.loss_scaler.get_scale() == 64.0


def test_patience_counts_bad_iterations_in_a_row(build):
    """Infinite losses that leave the state finite: nothing to mend, only to count."""
    hooks = [
        # Logits beyond FP16 from here on.
        helpers.fault("parameter", 3, where=CLS, value="x1e6"),
        rollback(interval=100, patience=3),
    ]
    runner = build("retinanet", iters=9, hooks=hooks, ema=False)
    runner.train()
    (event,) = helpers.ledger(runner, "rollback")
    assert (event["iter"], event["target_iter"]) == (5, 0)
    assert event["verdict"] == "FORWARD_NONFINITE"
    assert event["nonfinite_state"] == []


def test_an_ordinary_overflow_is_not_bad(build):
    runner = build(
        "retinanet",
        iters=8,
        hooks=[rollback(patience=1)],
        options={"optim_wrapper.loss_scale": dict(init_scale=2.0**60, _delete_=True)},
    )
    runner.train()
    verdicts = {e["verdict"] for e in helpers.ledger(runner, "overflow")}
    assert verdicts == {"SCALE_OVERFLOW"}
    assert len(helpers.ledger(runner, "overflow")) == 8  # every single iteration
    assert helpers.ledger(runner, "rollback") == []


def test_a_snapshot_that_failed_gives_way_to_an_older_one(build):
    hooks = [nan_weight(4, iters=2), rollback(interval=3)]
    runner = build("retinanet", iters=8, hooks=hooks)
    runner.train()
    targets = [e["target_iter"] for e in helpers.ledger(runner, "rollback")]
    assert targets == [3, 0]


def test_a_hopeless_run_ends_and_says_what_to_use(build):
    hooks = [
        nan_weight(2, iters=98),
        rollback(max_rollbacks=2),
        dict(type="amp_hooks.StabilityPanelHook", interval=100),
    ]
    runner = build("retinanet", iters=50, hooks=hooks)
    with pytest.raises(TrainingDivergedError) as info:
        runner.train()
    message = str(info.value)
    pointer = pointer_of(runner)
    for part in ("iteration 4", "STATE_NONFINITE", "2 rollbacks", "x0.01", pointer):
        assert part in message
    (abort,) = helpers.ledger(runner, "abort")
    assert abort["checkpoint"] == pointer
    checkpoint = torch.load(pointer, weights_only=True)
    assert nonfinite_names(checkpoint["state_dict"]) == []


def test_a_model_that_is_not_finite_from_the_start(build):
    runner = build("retinanet", iters=3, hooks=[rollback()])

    class Poison(Hook):
        def before_train(self, runner):
            torch.nn.init.constant_(runner.model.get_parameter(CLS), math.nan)

    runner.register_hook(Poison())
    with pytest.raises(TrainingDivergedError, match="before the first iteration"):
        runner.train()


def test_last_checkpoint_never_names_a_file_that_is_not_finite(build):
    """CheckpointHook wants to save a poisoned buffer that no loss has shown."""
    poison = helpers.fault("buffer", 5, where=BN)
    runner = build(
        "retinanet",
        iters=6,
        hooks=[poison, rollback(interval=3)],
        options={"default_hooks.checkpoint.interval": 6},
    )
    runner.train()
    assert "iter_6.pth" not in os.listdir(runner.work_dir)
    pointer = pointer_of(runner)
    assert pointer == os.path.join(runner.work_dir, "rollback", "iter_3.pth")


def test_files_are_few_finite_and_whole(build):
    runner = build("retinanet", iters=10, hooks=[rollback(interval=2, keep=3)])
    runner.train()
    folder = os.path.join(runner.work_dir, "rollback")
    assert sorted(os.listdir(folder)) == ["iter_4.pth", "iter_6.pth", "iter_8.pth"]
    for name in os.listdir(folder):
        checkpoint = torch.load(os.path.join(folder, name), weights_only=True)
        assert checkpoint["meta"]["iter"] == int(name[5:-4])
        assert nonfinite_names(checkpoint["state_dict"]) == []
        assert "ema_state_dict" in checkpoint
        assert checkpoint["amp_hooks"]["RollbackHook"]["rollbacks"] == 0


def test_a_new_run_does_not_hide_the_checkpoint_of_an_old_one(build, tmp_path):
    first = build("retinanet", iters=4, hooks=[rollback()], work_dir=tmp_path / "w")
    first.train()
    pointer = tmp_path / "w" / "last_checkpoint"
    before = pointer.read_text()
    build(
        "retinanet",
        iters=1,
        hooks=[rollback()],
        work_dir=tmp_path / "w",
        options={"default_hooks.checkpoint.save_last": False},
    ).train()
    assert pointer.read_text() == before


def test_a_disk_that_fails_later_costs_no_run(build, caplog):
    runner = build("retinanet", iters=6, hooks=[rollback(interval=2)])
    hook = helpers.hook_of(runner, "RollbackHook")
    write = type(hook)._write

    def fill_disk(self, runner, runtime):
        if runner.iter == 4:  # the folder is gone: nothing can be written into it
            os.rename(self._files.folder, self._files.folder + ".gone")
            Path(self._files.folder).touch()
        write(self, runner, runtime)

    type(hook)._write, restore = fill_disk, write
    try:
        runner.train()
    finally:
        type(hook)._write = restore
    assert runner.iter == 6
    assert [s.iter for s in hook._snapshots] == [2, 4]  # kept in memory all the same


def test_accumulation_takes_snapshots_between_windows(build):
    hooks = [nan_weight(7), rollback(interval=4)]
    runner = build("retinanet", iters=9, accumulate=3, hooks=hooks)
    runner.train()
    # Iteration 4 lies inside a window, so that snapshot waits for 6.
    snapshots = [e["iter"] for e in helpers.ledger(runner, "snapshot")]
    assert snapshots[:2] == [0, 6]
    (event,) = helpers.ledger(runner, "rollback")
    assert event["target_iter"] == 6
    assert nonfinite_names(helpers.state(runner)) == []


def test_healthy_run_is_left_alone(build):
    runner = build("retinanet", epochs=1, hooks=[rollback()])
    runner.train()
    hook = helpers.hook_of(runner, "RollbackHook")
    assert (hook.rollbacks, hook.total_lr_factor) == (0, 1.0)
    assert {e["event"] for e in helpers.ledger(runner)} <= {"snapshot", "overflow"}
