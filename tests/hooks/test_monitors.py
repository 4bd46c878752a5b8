"""The three monitors, on real detectors."""

import math

import pytest
import torch
from mmengine.hooks import Hook

from amp_hooks.runtime import Runtime
from tests import helpers
from tests.count_reads import CountReads

MONITORS = helpers.SUITE[:3]
FRCNN_CLS = {"rpn_head.rpn_cls", "roi_head.bbox_head.fc_cls"}


def records(runner):
    return list(Runtime.of(runner).recorder.records)


@pytest.mark.parametrize(
    ("detector", "precision", "layers"),
    [
        ("faster_rcnn", "float32", FRCNN_CLS),
        ("faster_rcnn", "float16", FRCNN_CLS),
        # mmcv's NMS, which two-stage detectors train with, refuses bfloat16 on a CPU.
        ("retinanet", "bfloat16", {"bbox_head.retina_cls"}),
    ],
)
def test_finds_the_classifiers_and_measures_every_iteration(
    build, detector, precision, layers
):
    runner = build(detector, iters=4, precision=precision, hooks=MONITORS)
    runner.train()
    assert len(records(runner)) == 4
    for record in records(runner):
        assert set(record.values["logit_absmax"]) == layers
        assert not any(record.all("logit_nonfinite"))


def test_logit_magnitude_is_that_of_the_head(build):
    runner = build("retinanet", iters=3, hooks=MONITORS, precision="float32")
    seen = {}

    def spy(module, args, output):
        if torch.is_grad_enabled():
            peak = output.detach().abs().max().item()
            seen[runner.iter] = max(seen.get(runner.iter, 0.0), peak)

    runner.model.bbox_head.retina_cls.register_forward_hook(spy)
    runner.train()
    measured = [r.get("logit_absmax", "bbox_head.retina_cls") for r in records(runner)]
    assert measured == [pytest.approx(seen[i]) for i in range(3)]


def test_targets_replace_the_search(build):
    hook = dict(type="amp_hooks.ClsScoreMonitorHook", targets=["*.fc_reg"])
    runner = build("faster_rcnn", iters=2, hooks=[hook])
    runner.train()
    (layers,) = {tuple(r.values["logit_absmax"]) for r in records(runner)}
    assert layers == ("roi_head.bbox_head.fc_reg",)


@pytest.mark.parametrize("name", ["ClsScoreMonitorHook", "HeadClampHook"])
def test_a_target_without_match_is_refused_before_training(build, name):
    hook = dict(type=f"amp_hooks.{name}", targets=["*.fc_clss"])
    runner = build("faster_rcnn", iters=1, hooks=[hook])
    with pytest.raises(ValueError, match=rf"{name}.*'\*\.fc_clss'.*bbox_head\.fc_cls"):
        runner.train()


class CollectGrads(Hook):
    """The norms by hand, from the gradients as the optimizer sees them."""

    def before_train(self, runner):
        self.norms, wrapper = [], runner.optim_wrapper
        clip = type(wrapper)._clip_grad

        def spy():
            grads = [p.grad for p in runner.model.parameters() if p.grad is not None]
            total = torch.stack([g.double().norm() for g in grads]).norm().item()
            backbone = [p.grad for p in runner.model.backbone.parameters()]
            part = torch.stack([g.double().norm() for g in backbone]).norm().item()
            self.norms.append((total, part))
            clip(wrapper)

        wrapper._clip_grad = spy


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_gradient_norm_is_unscaled_and_before_clipping(build, precision, accumulate):
    scale = {
        "optim_wrapper.loss_scale": 1024.0,
        "optim_wrapper.clip_grad.max_norm": 0.1,
    }
    if precision == "float32":
        scale.pop("optim_wrapper.loss_scale")
    runner = build(
        "retinanet",
        iters=6,
        hooks=MONITORS,
        precision=precision,
        accumulate=accumulate,
        options=scale,
    )
    collect = CollectGrads()
    runner.register_hook(collect)
    runner.train()
    steps = [r for r in records(runner) if r.all("found_inf")]
    assert len(steps) == len(collect.norms) == 6 // accumulate
    for record, (total, backbone) in zip(steps, collect.norms):
        assert record.get("gradnorm") == pytest.approx(total, rel=1e-4)
        assert record.get("gradnorm", "backbone") == pytest.approx(backbone, rel=1e-4)
        assert set(record.values["gradnorm"]) == {"", "backbone", "neck", "bbox_head"}


def test_gradient_groups_by_pattern_and_a_wrong_one(build):
    hook = dict(type="amp_hooks.GradNormMonitorHook", groups=dict(cls="*cls*"))
    runner = build("faster_rcnn", iters=1, hooks=[hook])
    runner.train()
    assert set(records(runner)[0].values["gradnorm"]) == {"", "cls"}
    hook["groups"] = dict(cls="*clss*")
    with pytest.raises(ValueError, match="groups.*'cls'.*matches no parameter"):
        build("faster_rcnn", iters=1, hooks=[hook]).train()


@pytest.mark.parametrize("static", [True, False])
def test_skips_are_counted(build, static):
    start = 2.0**60
    loss_scale = start if static else dict(init_scale=start, _delete_=True)
    runner = build(
        "retinanet",
        iters=5,
        hooks=MONITORS,
        options={"optim_wrapper.loss_scale": loss_scale},
    )
    before = [p.detach().clone() for p in runner.model.parameters()]
    runner.train()
    assert helpers.hook_of(runner, "LossScaleMonitorHook").skipped_total == 5
    scales = [r.get("scale") for r in records(runner)]
    assert scales == [start if static else start / 2**i for i in range(5)]
    assert [r.get("skipped_total") for r in records(runner)] == [1, 2, 3, 4, 5]
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


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_one_transfer_in_a_clean_iteration(build, precision):
    """All hooks but the snapshots, which have their interval, read the device once."""
    suite = [dict(h, interval=1000) if "interval" in h else h for h in helpers.SUITE]
    counts = []
    for hooks in ([], suite):
        runner = build("retinanet", iters=6, precision=precision, hooks=hooks)
        per_iter = []

        class Count(Hook):
            priority = 0

            def before_train_iter(self, runner, per_iter=per_iter, **kwargs):
                per_iter.append(mode.reads)

        runner.register_hook(Count(), priority=0)
        with CountReads() as mode:
            runner.train()
        per_iter.append(mode.reads)
        counts.append([b - a for a, b in zip(per_iter[2:], per_iter[3:-1])])
    plain, watched = counts
    assert [b - a for a, b in zip(plain, watched)] == [1] * len(plain)
    assert Runtime.of(runner).recorder.transfers == 6


def test_a_non_finite_loss_is_a_forward_fault_and_written_down(build):
    fault = dict(type="BreakHook", what="images", at=[2])
    runner = build("retinanet", iters=3, ema=False, hooks=[*MONITORS, fault])
    runner.train()
    verdicts = [r.verdict.value for r in records(runner)]
    assert verdicts[2] == "FORWARD_NONFINITE"
    (line,) = [x for x in helpers.ledger(runner, "overflow") if x["iter"] == 2]
    assert line["verdict"] == "FORWARD_NONFINITE"
    assert line["layers"] == ["bbox_head.retina_cls"]
    assert "loss_cls" in line["losses"]
    assert not math.isfinite(float(line["losses"]["loss"]))


def test_a_bad_micro_batch_marks_the_step_of_its_window(build):
    """Without that, the step would look like an ordinary overflow of the scale."""
    fault = dict(type="BreakHook", what="images", at=[0])
    runner = build("retinanet", iters=3, accumulate=3, hooks=[*MONITORS, fault])
    runner.train()
    first, second, step = records(runner)
    assert first.verdict.value == "FORWARD_NONFINITE"
    assert step.all("found_inf") == [1.0]
    assert step.verdict.value == "FORWARD_NONFINITE"
