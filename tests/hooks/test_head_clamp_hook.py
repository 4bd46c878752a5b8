import pytest
import torch

from amp_hooks.runtime import Runtime
from tests import helpers

CLS = "roi_head.bbox_head.fc_cls"


def clamp(**kwargs):
    return dict(type="amp_hooks.HeadClampHook", **kwargs)


def big_weight(at, factor):
    return dict(
        type="BreakHook", what="weight", name=f"{CLS}.weight", at=[at], factor=factor
    )


class SpyLoss:
    """What the classification loss is given."""

    def __init__(self, runner):
        self.runner, self.seen = runner, {}
        loss = runner.model.roi_head.bbox_head.loss_cls
        loss.register_forward_pre_hook(self)

    def __call__(self, module, args):
        autocast = torch.is_autocast_enabled("cpu")
        self.seen[self.runner.iter] = (args[0].detach().abs().max().item(), autocast)


@pytest.mark.parametrize("loop", [dict(iters=9), dict(epochs=1)])
def test_on_by_need_off_after_a_clean_stretch(build, loop):
    """The classifier's weights jump by 1e5 and come back: logits far beyond FP16."""
    fault, mend = big_weight(2, 1e5), big_weight(4, 1e-5)
    hooks = [fault, mend, clamp(release_after=3), helpers.SUITE[-1]]
    options = {"optim_wrapper.optimizer.lr": 1e-6}
    runner = build("faster_rcnn", **loop, hooks=hooks, ema=False, options=options)
    spy = SpyLoss(runner)
    runner.train()
    (on,), (off,) = (helpers.ledger(runner, e) for e in ("clamp_on", "clamp_off"))
    assert (on["iter"], off["iter"]) == (2, 6)
    assert on["limit"] == 100.0
    assert spy.seen[2][0] > 1000.0
    # From the next iteration: bounded, and FP32 in the layer and in the loss.
    assert spy.seen[3] == (100.0, False)
    assert spy.seen[5][1] is False
    assert spy.seen[7][1] is True
    records = Runtime.of(runner).recorder.records
    assert [r.get("clamp_active") for r in records][:8] == [0, 0, 1, 1, 1, 1, 0, 0]
    # The monitor sees what the layer wanted to say, not what was let through.
    assert records[3].get("logit_absmax", CLS) > 1000.0
    assert 0.0 < records[3].get("clamped", CLS) <= 1.0
    assert records[5].get("clamped", CLS) == 0.0


def test_stock_amp_dies_where_the_clamp_survives(build):
    """Logits beyond FP16 at every iteration: stock AMP never takes a step again."""
    results = {}
    for name, hooks in (("stock", []), ("clamped", [clamp(when="always")])):
        runner = build(
            "faster_rcnn",
            iters=6,
            hooks=[big_weight(1, 1e7), *hooks],
            ema=False,
            options={"optim_wrapper.optimizer.lr": 1e-6},
        )
        runner.train()
        results[name] = torch.tensor(helpers.losses(runner))
    assert not torch.isfinite(results["stock"][1:]).any()
    assert torch.isfinite(results["clamped"]).all()


def test_named_targets_are_clamped_from_the_first_iteration(build):
    hooks = [
        big_weight(0, 1e4),
        clamp(when="always", limit=7.0, trigger=7.0, targets=CLS),
    ]
    runner = build("faster_rcnn", iters=2, hooks=hooks, ema=False)
    spy = SpyLoss(runner)
    runner.train()
    assert spy.seen[0][0] == 7.0


def test_inside_the_limit_nothing_changes_in_fp32(build):
    runs = []
    for hooks in ([], [clamp(when="always")]):
        runner = build("faster_rcnn", iters=4, precision="float32", hooks=hooks)
        runner.train()
        runs.append((helpers.losses(runner), helpers.state(runner)))
    assert runs[0][0] == runs[1][0]
    assert [k for k, v in runs[0][1].items() if not torch.equal(v, runs[1][1][k])] == []


def test_evaluation_is_not_clamped(build):
    hook = clamp(when="always", limit=1e-6, trigger=1.0, targets=CLS)
    runner = build("faster_rcnn", iters=1, hooks=[hook])
    layer = runner.model.roi_head.bbox_head.fc_cls
    seen = []

    def look(runner, batch_idx, data_batch=None, outputs=None):
        x = torch.ones(1, layer.in_features)
        seen.append(layer(x).abs().max().item())  # gradients on: as in training
        with torch.no_grad():
            seen.append(layer(x).abs().max().item())

    helpers.hook_of(runner, "HeadClampHook").after_train_iter = look
    runner.train()
    assert seen[0] <= 1e-6 < seen[1]


def test_state_survives_a_resume(build, tmp_path):
    hooks = [big_weight(1, 1e5), clamp()]
    work = dict(work_dir=tmp_path / "w", ema=False)
    build("faster_rcnn", iters=3, hooks=hooks, **work).train()
    runner = build("faster_rcnn", iters=4, hooks=[clamp()], **work)
    runner._resume = True
    spy = SpyLoss(runner)
    runner.train()
    assert spy.seen[3][0] == 100.0  # the first iteration already
