"""The loss scale, on real detectors."""

import pytest
import torch

from tests import helpers


@pytest.mark.parametrize("static", [True, False])
def test_skips_are_counted(build, static):
    start = 2.0**60
    loss_scale = start if static else dict(init_scale=start, _delete_=True)
    runner = build(
        "retinanet",
        iters=5,
        hooks=helpers.MONITORS,
        options={"optim_wrapper.loss_scale": loss_scale},
    )
    before = [p.detach().clone() for p in runner.model.parameters()]
    runner.train()
    assert helpers.hook_of(runner, "LossScaleMonitorHook").counters[""].total == 5
    scales = [r.get("scale") for r in helpers.records(runner)]
    assert scales == [start if static else start / 2**i for i in range(5)]
    assert [r.get("skipped_total") for r in helpers.records(runner)] == [1, 2, 3, 4, 5]
    # A static scale does not look for its level.
    kinds = {line.get("skip") for line in helpers.ledger(runner, "overflow")}
    assert kinds == {None if static else "calibration"}
    after = runner.model.parameters()
    assert all(torch.equal(a, b) for a, b in zip(before, after) if a.requires_grad)


def test_collapse_is_told_once_and_an_ordinary_skip_is_not(build, tmp_path):
    def warnings_of(init_scale, patience):
        runner = build(
            "retinanet",
            iters=8,
            hooks=[dict(type="amp_hooks.LossScaleMonitorHook", patience=patience)],
            options={
                "optim_wrapper.loss_scale": dict(init_scale=init_scale, _delete_=True),
                "log_level": "WARNING",
            },
        )
        runner.train()
        (log,) = (tmp_path / runner.work_dir).glob("*/*.log")
        return log.read_text().count("the loss scale has collapsed")

    assert warnings_of(2.0**60, patience=4) == 1
    assert warnings_of(2.0**60, patience=16) == 0


def test_says_what_is_active_and_that_fp16_of_2x_is_not(build):
    runner = build(
        "retinanet",
        iters=1,
        hooks=helpers.MONITORS[:1],
        accumulate=2,
        precision="float32",
        options={"fp16": dict(loss_scale=512.0), "log_level": "INFO"},
    )
    runner.train()
    log = helpers.log(runner)
    assert (
        "optimizer: OptimWrapper, AdamW, dtype float32, loss scale none, "
        "clip_grad {'max_norm': 35, 'norm_type': 2}, accumulative_counts 2" in log
    )
    assert "MMDetection 3.x ignores" in log
    assert "type='AmpOptimWrapper'" in log
    silent = build(
        "retinanet",
        iters=1,
        hooks=helpers.MONITORS[:1],
        options={"optim_wrapper.loss_scale": 512.0, "log_level": "INFO"},
    )
    silent.train()
    log = helpers.log(silent)
    assert "CpuAmpOptimWrapper, AdamW, dtype torch.float16, loss scale 512 (st" in log
    assert "fp16" not in log.split("optimizer: ", 1)[1].split("\n", 1)[1]


def test_kinds_of_skips_reach_the_ledger_and_the_log(build):
    runner = build(
        "retinanet",
        iters=6,
        hooks=[dict(type="amp_hooks.LossScaleMonitorHook", patience=4)],
        options={
            "optim_wrapper.loss_scale": dict(init_scale=2.0**60, _delete_=True),
            "log_level": "INFO",
        },
    )
    runner.train()
    kinds = [line["skip"] for line in helpers.ledger(runner, "overflow")]
    assert kinds == ["calibration"] * 3 + ["collapse"] * 3
    shown = "6 of 6 steps skipped (3 calibration, 0 ordinary, 3 collapse)"
    assert shown in helpers.log(runner)
    last = helpers.records(runner)[-1]
    assert (last.get("skipped_streak"), last.get("skipped_share")) == (6, 1.0)


def test_growth_tracker_counts_clean_steps(build):
    scale = dict(init_scale=2.0, growth_interval=3, _delete_=True)
    runner = build(
        "retinanet",
        iters=7,
        hooks=helpers.MONITORS,
        options={"optim_wrapper.loss_scale": scale},
    )
    runner.train()
    records = helpers.records(runner)
    assert [r.get("growth_tracker") for r in records] == [1, 2, 0, 1, 2, 0, 1]
    assert [r.get("scale") for r in records] == [2, 2, 2, 4, 4, 4, 8]


@pytest.mark.parametrize("loop", [dict(iters=5), dict(epochs=2)], ids=str)
def test_counters_go_on_after_a_resume(build, tmp_path, loop):
    def train(**options):
        runner = build(
            "retinanet",
            work_dir=tmp_path / "w",
            hooks=helpers.MONITORS,
            options={
                "optim_wrapper.loss_scale": dict(init_scale=2.0**18, _delete_=True),
                "default_hooks.checkpoint.interval": 1,
                **options,
            },
            **loop,
        )
        runner.train()
        return helpers.hook_of(runner, "LossScaleMonitorHook").counters[""]

    first = train()
    assert first.total > 0
    loop = {k: v * 2 for k, v in loop.items()}
    second = train(resume=True)
    assert second.steps == 2 * first.steps
    assert second.total >= first.total
