"""The warning comes before the overflow, and does not come without one.

Small models and few runs; ``scripts/bench_early_warning.py`` does it at full size.
"""

import math

import pytest
from mmengine.hooks import Hook

from tests import helpers

MONITOR = dict(type="amp_hooks.ClsScoreMonitorHook")


class StopWhenDead(Hook):
    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if not math.isfinite(outputs["loss"].item()):
            runner.train_loop.stop_training = True


@pytest.mark.long
@pytest.mark.parametrize(("seed", "loop"), [(0, dict(iters=400)), (1, dict(epochs=40))])
def test_a_rising_learning_rate_is_warned_of_ten_iterations_ahead(build, seed, loop):
    ramp = dict(type="ExponentialLR", gamma=1.02, by_epoch=False)
    runner = build(
        "faster_rcnn",
        hooks=[MONITOR],
        ema=False,
        options=dict(
            param_scheduler=[ramp], randomness=dict(seed=seed), log_level="WARNING"
        ),
        **loop,
    )
    runner.register_hook(StopWhenDead(), priority="LOWEST")
    runner.train()
    died = len(helpers.losses(runner)) - 1
    assert not math.isfinite(helpers.losses(runner)[-1])
    warning = helpers.ledger(runner, "early_warning")[0]
    assert warning["iter"] <= died - 10
    assert warning["iterations_left"] <= 100
    assert warning["absmax"] > 100 > warning["usual"]
    assert warning["layer"].endswith(("rpn_cls", "fc_cls"))
    assert f"the logits of {warning['layer']} are heading" in helpers.log(runner)


@pytest.mark.long
@pytest.mark.parametrize(
    ("detector", "precision"),
    [("faster_rcnn", "float16"), ("retinanet", "bfloat16")],
)
def test_a_healthy_run_is_not_warned(build, detector, precision):
    warm_up = dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=30)
    runner = build(
        detector,
        iters=120,
        precision=precision,
        hooks=[MONITOR],
        options=dict(param_scheduler=[warm_up]),
    )
    runner.train()
    assert math.isfinite(helpers.losses(runner)[-1])
    assert helpers.ledger(runner, "early_warning") == []


def test_zero_switches_it_off(build):
    where = "bbox_head.retina_cls.weight"
    fault = helpers.fault("parameter", 20, where=where, value="x1e4")
    events = []
    for ahead in (100, 0):
        hook = dict(MONITOR, warn_ahead=ahead)
        runner = build("retinanet", iters=21, hooks=[fault, hook], precision="float32")
        runner.train()
        events.append(helpers.ledger(runner, "early_warning"))
    assert [len(e) for e in events] == [1, 0]
