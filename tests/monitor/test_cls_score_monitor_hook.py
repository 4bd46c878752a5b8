"""The magnitude of the logits, on real detectors."""

import math

import pytest
import torch
from mmdet.models import RetinaHead
from mmdet.registry import MODELS
from torch import nn

from amp_hooks.engine.torch_api import TORCH
from tests import helpers, small

FRCNN_CLS = {"rpn_head.rpn_cls", "roi_head.bbox_head.fc_cls"}
RETINA_CLS = "bbox_head.retina_cls"


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
    runner = build(detector, iters=4, precision=precision, hooks=helpers.MONITORS)
    runner.train()
    assert len(helpers.records(runner)) == 4
    for record in helpers.records(runner):
        assert set(record.values["logit_absmax"]) == layers
        assert not any(record.all("logit_nan") + record.all("logit_inf"))


def test_logit_magnitude_is_that_of_the_head(build):
    runner = build("retinanet", iters=3, hooks=helpers.MONITORS, precision="float32")
    seen = {}

    def spy(module, args, output):
        if torch.is_grad_enabled():
            peak = output.detach().abs().max().item()
            seen[runner.iter] = max(seen.get(runner.iter, 0.0), peak)

    runner.model.bbox_head.retina_cls.register_forward_hook(spy)
    runner.train()
    measured = [
        r.get("logit_absmax", "bbox_head.retina_cls") for r in helpers.records(runner)
    ]
    assert measured == [pytest.approx(seen[i]) for i in range(3)]


def test_targets_replace_the_search(build):
    hook = dict(type="amp_hooks.ClsScoreMonitorHook", targets=["*.fc_reg"])
    runner = build("faster_rcnn", iters=2, hooks=[hook])
    runner.train()
    (layers,) = {tuple(r.values["logit_absmax"]) for r in helpers.records(runner)}
    assert layers == ("roi_head.bbox_head.fc_reg",)


@pytest.mark.parametrize("name", ["ClsScoreMonitorHook", "HeadClampHook"])
def test_a_target_without_match_is_refused_before_training(build, name):
    hook = dict(type=f"amp_hooks.{name}", targets=["*.fc_clss"])
    runner = build("faster_rcnn", iters=1, hooks=[hook])
    with pytest.raises(ValueError, match=rf"{name}.*'\*\.fc_clss'.*bbox_head\.fc_cls"):
        runner.train()


@pytest.mark.parametrize(
    ("precision", "limit"),
    [("float16", 65504.0), ("bfloat16", 3.39e38), ("float32", 3.40e38)],
)
def test_headroom_is_that_of_the_precision(build, precision, limit):
    runner = build("retinanet", iters=2, precision=precision, hooks=helpers.MONITORS)
    runner.train()
    for record in helpers.records(runner):
        assert record.get("logit_limit", RETINA_CLS) == pytest.approx(limit, rel=1e-2)


def test_nan_and_infinite_logits_are_counted(build):
    fault = helpers.fault("parameter", 1, where=f"{RETINA_CLS}.bias")
    hooks = [fault, *helpers.MONITORS]
    runner = build("retinanet", iters=2, hooks=hooks, precision="float32")
    numbers = []
    runner.model.bbox_head.retina_cls.register_forward_hook(
        lambda module, args, y: numbers.append(y.isnan().sum().item())
    )
    runner.train()
    clean, bad = helpers.records(runner)
    assert clean.get("logit_nan", RETINA_CLS) == clean.get("logit_inf", RETINA_CLS) == 0
    assert bad.get("logit_nan", RETINA_CLS) == sum(numbers) > 0
    assert math.isfinite(bad.get("logit_absmax", RETINA_CLS))


class WritesToItsLogits(small.Small):
    """They cannot be measured when the forward pass is over."""

    def losses(self, features, logits, y):
        self.raw = logits.detach().abs().max().item()
        return dict(loss_cls=self.bbox_head.loss_cls(logits.mul_(0.1), y))


def test_a_model_that_writes_to_its_logits(tmp_path):
    model, raw = WritesToItsLogits(), []
    runner = small.build(tmp_path, helpers.MONITORS, model=model, iters=8)
    runner.model.register_forward_hook(lambda *args: raw.append(model.raw))
    runner.train()
    found = [r.get("logit_absmax", "bbox_head.fc_cls") for r in helpers.records(runner)]
    assert found == pytest.approx(raw)


class WritesWhenBad(small.Small):
    """It mends its logits itself; what they were was not finite all the same."""

    def losses(self, features, logits, y):
        if not logits.isfinite().all():
            logits.nan_to_num_(0.0, 0.0, 0.0)
        return super().losses(features, logits, y)


def test_logits_that_are_mended_in_place_are_seen(tmp_path):
    class Overflow(small.Hook):
        """In the weights: the only infinity is in the logits."""

        def before_train_iter(self, runner, batch_idx, data_batch=None):
            bias = runner.model.bbox_head.fc_cls.bias.data
            self.kept = bias.clone()
            if runner.iter == 6:
                bias[0] = float("inf")

        def after_train_iter(self, runner, *args, **kwargs):
            runner.model.bbox_head.fc_cls.bias.data.copy_(self.kept)

    hooks = [*helpers.MONITORS, dict(type="amp_hooks.StepGuardHook"), Overflow()]
    runner = small.build(tmp_path, hooks, model=WritesWhenBad, iters=9)
    runner.train()
    records = helpers.records(runner)
    assert records[6].verdict.value == "FORWARD_NONFINITE"
    assert records[6].get("logit_inf", "bbox_head.fc_cls") >= 1
    assert all(r.get("logit_absmax", "bbox_head.fc_cls") for r in records[:6])


class Mask(nn.Module):
    """As text-conditioned heads mask tokens that are not there."""

    def forward(self, x):
        hidden = torch.zeros_like(x, dtype=torch.bool)
        hidden[:, ::2] = True
        return x.masked_fill(hidden, float("-inf"))


@MODELS.register_module()
class MaskingRetinaHead(RetinaHead):
    def _init_layers(self):
        super()._init_layers()
        self.mask = Mask()

    def forward_single(self, x):
        cls_score, bbox_pred = super().forward_single(x)
        weights = self.mask(cls_score).softmax(dim=1)
        return cls_score * (1 + weights), bbox_pred


def test_infinities_by_design_are_no_alarm(build):
    hook = dict(
        type="amp_hooks.ClsScoreMonitorHook", targets=["*.mask", "*.retina_cls"]
    )
    runner = build(
        "retinanet",
        iters=2,
        hooks=[hook],
        precision="float32",
        options={"model.bbox_head.type": "MaskingRetinaHead"},
    )
    runner.train()
    for record in helpers.records(runner):
        assert record.get("logit_inf", "bbox_head.mask") > 0
        assert record.verdict.value == "HEALTHY"
    assert helpers.ledger(runner) == []


# MMEngine leaves it to torch which kind of checkpointing it is.
@pytest.mark.filterwarnings("ignore:.*use_reentrant parameter:UserWarning")
@pytest.mark.parametrize(
    ("modules", "targets"),
    [
        (["bbox_head.retina_cls", "backbone.layer2"], None),
        (["bbox_head.retina_cls"], ["*.retina_cls"]),
    ],
)
def test_under_activation_checkpointing(build, modules, targets):
    """MMEngine's own setting; it runs the forward pass a second time."""
    peaks = []
    for checkpointing in (None, modules):
        hook = dict(type="amp_hooks.ClsScoreMonitorHook", targets=targets)
        runner = build(
            "retinanet",
            iters=3,
            hooks=[hook],
            precision="float32",
            options={"activation_checkpointing": checkpointing},
        )
        runner.train()
        peaks.append(
            [r.get("logit_absmax", RETINA_CLS) for r in helpers.records(runner)]
        )
    assert peaks[0] == pytest.approx(peaks[1], rel=1e-4)


@helpers.NEEDS_TORCH_2_1
@pytest.mark.filterwarnings("ignore:.*use_reentrant parameter:UserWarning")
@pytest.mark.parametrize("targets", [None, ["*.fc_cls"]])
def test_a_head_hidden_by_checkpointing_is_told_and_can_be_named(build, targets):
    runner = build(
        "faster_rcnn",
        iters=2,
        hooks=[dict(type="amp_hooks.ClsScoreMonitorHook", targets=targets)],
        precision="float32",
        options={
            "activation_checkpointing": ["roi_head.bbox_head"],
            "log_level": "WARNING",
        },
    )
    runner.train()
    layers = {
        name for r in helpers.records(runner) for name in r.values["logit_absmax"]
    }
    told = "use_reentrant=True hides the layers" in helpers.log(runner)
    if targets is None:
        assert layers == {"rpn_head.rpn_cls"}
        assert told
    else:
        assert layers == {"roi_head.bbox_head.fc_cls"}
        assert not told


# torch's own, while it compiles.
@pytest.mark.long
@pytest.mark.skipif(TORCH < (2, 3), reason="cannot compile MMEngine's stack_batch")
@pytest.mark.filterwarnings("default::UserWarning:torch.*")
@pytest.mark.filterwarnings("default:The .grad attribute of a Tensor:UserWarning")
def test_under_torch_compile(build):
    """MMEngine compiles train_step, with the hooks and the step in it."""
    peaks, norms = [], []
    for compiled in (False, dict(backend="eager")):
        torch._dynamo.reset()
        runner = build(
            "retinanet",
            iters=2,
            hooks=helpers.MONITORS[1:],
            ema=False,
            precision="float32",
            options={"compile": compiled},
        )
        runner.train()
        records = helpers.records(runner)
        peaks.append([r.get("logit_absmax", RETINA_CLS) for r in records])
        norms.append([r.get("gradnorm") for r in records])
    assert peaks[0] == pytest.approx(peaks[1], rel=1e-4)
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)
