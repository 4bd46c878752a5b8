"""Promise 1: watching changes nothing."""

import pytest
import torch

from amp_hooks.engine.patch import Layers
from tests import helpers

ONE_LINE = [dict(type="amp_hooks.StabilityHook")]


@pytest.mark.parametrize(
    ("detector", "loop", "precision", "accumulate", "suite"),
    [
        ("faster_rcnn", dict(iters=6), "float32", 1, helpers.SUITE),
        ("retinanet", dict(epochs=1), "float32", 1, ONE_LINE),
        ("faster_rcnn", dict(epochs=1), "float16", 1, ONE_LINE),
        ("retinanet", dict(iters=7), "float16", 3, helpers.SUITE),
        ("retinanet", dict(iters=6), "bfloat16", 1, helpers.SUITE),
        ("retinanet", dict(epochs=1), "bfloat16", 2, helpers.SUITE),
    ],
)
def test_losses_and_state_with_every_hook_equal_those_without(
    build, detector, loop, precision, accumulate, suite
):
    runs = []
    # Low enough that nothing overflows: StepGuardHook undoes what an overflow did.
    options = {"optim_wrapper.loss_scale": 128.0} if precision != "float32" else {}
    for hooks in ([], suite):
        runner = build(
            detector,
            **loop,
            precision=precision,
            accumulate=accumulate,
            hooks=hooks,
            options=options,
        )
        runner.train()
        runs.append((helpers.losses(runner), helpers.state(runner)))
        assert {e["event"] for e in helpers.ledger(runner)} <= {"snapshot"}
    (plain_losses, plain), (watched_losses, watched) = runs
    assert watched_losses == plain_losses
    assert plain.keys() == watched.keys()
    assert [n for n in plain if not torch.equal(plain[n], watched[n])] == []


def test_nothing_stays_attached(build):
    runner = build("faster_rcnn", iters=2, hooks=helpers.SUITE)
    runner.train()
    for name, module in runner.model.named_modules():
        assert not module._forward_hooks, name
        assert not module._forward_pre_hooks, name
        assert not {"loss_by_feat", "loss_and_target"} & set(vars(module)), name
    # MMEngine's schedulers have put a `step` of theirs there, which counts.
    left = vars(runner.optim_wrapper)
    assert not any(isinstance(left.get(n), Layers) for n in ("step", "backward"))
    assert "train_step" not in vars(runner.model)
