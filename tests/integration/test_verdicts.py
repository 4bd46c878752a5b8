"""What real faults are called."""

import math

from tests import helpers


def test_a_non_finite_loss_is_a_forward_fault_and_written_down(build):
    fault = helpers.infinite_images(2)
    runner = build("retinanet", iters=3, ema=False, hooks=[*helpers.MONITORS, fault])
    runner.train()
    verdicts = [r.verdict.value for r in helpers.records(runner)]
    assert verdicts[2] == "FORWARD_NONFINITE"
    (line,) = [x for x in helpers.ledger(runner, "overflow") if x["iter"] == 2]
    assert line["verdict"] == "FORWARD_NONFINITE"
    assert line["layers"] == ["bbox_head.retina_cls"]
    assert "loss_cls" in line["losses"]
    assert not math.isfinite(float(line["losses"]["loss"]))


def test_a_bad_micro_batch_marks_the_step_of_its_accumulation(build):
    """Without that, the step would look like an ordinary overflow of the scale."""
    fault = helpers.infinite_images(0)
    runner = build("retinanet", iters=3, accumulate=3, hooks=[*helpers.MONITORS, fault])
    runner.train()
    first, second, step = helpers.records(runner)
    assert first.verdict.value == "HEALTHY"  # no gradient is known yet
    assert step.all("found_inf") == [1.0]
    assert step.verdict.value == "FORWARD_NONFINITE"
