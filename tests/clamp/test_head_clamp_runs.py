"""HeadClampHook alone: it saves runs that stock AMP loses, and costs healthy ones
nothing, in heads of every kind and in modules that are no heads."""

import pytest
import torch
import torch.nn.functional as F
from mmdet.models.dense_heads import RPNHead
from mmdet.models.roi_heads.bbox_heads import Shared2FCBBoxHead
from mmdet.registry import MODELS
from torch.utils.checkpoint import checkpoint

from amp_hooks.engine.torch_api import is_autocast_enabled
from tests import helpers, small

CLS, RPN = "roi_head.bbox_head.fc_cls", "rpn_head.rpn_cls"


def clamp(**kwargs):
    return dict(type="amp_hooks.HeadClampHook", **kwargs)


def steps_taken(runner):
    return [not any(r.all("found_inf")) for r in helpers.records(runner)]


@pytest.mark.parametrize(
    ("hooks", "survives"),
    [
        ([], False),
        ([clamp(when="always")], True),
        ([clamp(when="triggered")], True),
        ([clamp(when="always", mode="soft")], True),
    ],
    ids=["stock", "always", "triggered", "soft"],
)
def test_a_classifier_that_overflows_fp16(build, hooks, survives):
    """Its learning rate is a million times too high; no fault is injected."""
    hot = dict(custom_keys={CLS: dict(lr_mult=1e6)})
    runner = build(
        "faster_rcnn",
        iters=30,
        hooks=[helpers.MONITORS[0], *hooks],
        ema=False,
        options={
            "optim_wrapper.paramwise_cfg": hot,
            "optim_wrapper.optimizer.lr": 0.01,
        },
    )
    start = {n: p.detach().clone() for n, p in runner.model.named_parameters()}
    runner.train()
    finite = torch.isfinite(torch.tensor(helpers.losses(runner)))
    taken = steps_taken(runner)
    if not survives:
        assert finite.nonzero().flatten().tolist() == [0, 1]
        assert not any(taken[2:])
        return
    # The iteration that triggers it is lost.
    assert (~finite).sum() <= (hooks[0]["when"] == "triggered")
    assert finite[3:].all()
    assert sum(taken[-10:]) >= 5
    for name, parameter in runner.model.named_parameters():
        assert parameter.isfinite().all(), name
        assert not torch.equal(parameter, start[name]), name
    # Without the clamp these logits could not have been held in FP16.
    records = helpers.records(runner)
    assert max(r.get("logit_absmax", CLS) or 0.0 for r in records) > 65504
    if hooks[0]["when"] == "triggered":
        (event,) = helpers.ledger(runner, "clamp_on")
        assert (event["iter"], event["reason"]) == (2, "non-finite forward")


@MODELS.register_module(force=True)
class Float32BBoxHead(Shared2FCBBoxHead):
    """What a user of mmdet 2.x wrote, in mmdet 3.x; without the clamp."""

    def forward(self, x):
        x = x.flatten(1)
        for fc in self.shared_fcs:
            x = self.relu(fc(x))
        with torch.autocast("cpu", enabled=False):
            cls_score = self.fc_cls(x.float())
        return cls_score, self.fc_reg(x)

    def loss_and_target(self, cls_score, bbox_pred, *args, **kwargs):
        with torch.autocast("cpu", enabled=False):
            return super().loss_and_target(
                cls_score.float(), bbox_pred.float(), *args, **kwargs
            )


@MODELS.register_module(force=True)
class Float32RPNHead(RPNHead):
    def forward_single(self, x):
        x = F.relu(self.rpn_conv(x))
        with torch.autocast("cpu", enabled=False):
            rpn_cls_score = self.rpn_cls(x.float())
        return rpn_cls_score, self.rpn_reg(x)

    def loss_by_feat(self, cls_scores, bbox_preds, *args, **kwargs):
        cls_scores = [x.float() for x in cls_scores]
        bbox_preds = [x.float() for x in bbox_preds]
        with torch.autocast("cpu", enabled=False):
            return super().loss_by_feat(cls_scores, bbox_preds, *args, **kwargs)


def predictions(runner):
    runner.model.eval()
    with torch.no_grad():
        samples = [s for b in runner.val_dataloader for s in runner.model.val_step(b)]
    found = [s.pred_instances for s in samples]
    return torch.cat([torch.cat([f.scores[:, None], f.bboxes], 1) for f in found])


@pytest.mark.parametrize(
    ("precision", "mode"), [("float16", "hard"), ("float32", "soft")]
)
def test_inside_the_limit_it_is_a_head_in_fp32(build, precision, mode):
    """Bit for bit: losses, weights, mAP, and every box."""
    ours = dict(hooks=[clamp(when="always", mode=mode, targets=[CLS, RPN])])
    theirs = dict(
        options={
            "model.roi_head.bbox_head.type": "Float32BBoxHead",
            "model.rpn_head.type": "Float32RPNHead",
        }
    )
    got = []
    for how in (ours, theirs, {}):
        how["options"] = {
            **how.get("options", {}),
            "model.test_cfg.rcnn.score_thr": 0.0,
        }
        runner = build(
            "faster_rcnn", iters=8, precision=precision, validate=True, **how
        )
        runner.train()
        bbox_map = runner.message_hub.get_scalar("val/coco/bbox_mAP").current()
        weights = helpers.state(runner)
        got.append((helpers.losses(runner), bbox_map, weights, predictions(runner)))
    (losses, bbox_map, weights, boxes), theirs, stock = got
    assert losses == theirs[0]
    assert bbox_map == theirs[1] >= 0.0
    assert weights.keys() == theirs[2].keys()
    assert [n for n, w in weights.items() if not torch.equal(w, theirs[2][n])] == []
    assert len(boxes) > 20
    assert torch.equal(boxes, theirs[3])
    # Stock AMP rounds the logits, so that the comparison above means something.
    assert (losses == stock[0]) is (precision == "float32")


@pytest.fixture
def family(monkeypatch, tmp_path):
    """``family(name, **attributes of the hook)``: in rehearsed FP16, two iterations."""
    monkeypatch.syspath_prepend(str(helpers.ROOT / "scripts"))
    import sweep_detectors

    made = []

    def make(name, **attributes):
        work_dir = tmp_path / f"{name}{len(made)}"
        runner = sweep_detectors.build_runner(
            sweep_detectors.FAMILIES[name], str(work_dir)
        )
        made.append(runner)
        runner.optim_wrapper["type"] = "amp_hooks.CpuAmpOptimWrapper"
        for attribute, value in attributes.items():
            setattr(helpers.hook_of(runner, "HeadClampHook"), attribute, value)
        return runner

    yield make
    for runner in made:
        runner.visualizer.close()


@pytest.mark.slow
def test_every_stage_of_a_cascade(family):
    runner = family("cascade_rcnn", limit=1e-3)
    heads = [*runner.model.roi_head.bbox_head, runner.model.rpn_head]
    seen = []

    def spy(module, args):
        logits = args[0].detach().abs().max().item()
        seen.append((runner.iter, logits, is_autocast_enabled("cpu")))

    for head in heads:
        head.loss_cls.register_forward_pre_hook(spy)
    runner.train()
    first = [(size, autocast) for i, size, autocast in seen if i == 0]
    second = [(size, autocast) for i, size, autocast in seen if i == 1]
    assert len(first) == len(second) == 3 + 5  # stages, and levels of the RPN
    assert all(autocast for _, autocast in first)
    assert all(size <= 1.001e-3 and not autocast for size, autocast in second)
    assert max(size for size, _ in first) > 1e-3
    left = [
        m for h in heads for m in ("loss_by_feat", "loss_and_target") if m in vars(h)
    ]
    assert left == []


LAST = "decoder.layers.5.ffn"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:To copy construct")  # of mmdet, told by torch
@pytest.mark.parametrize("targets", [[], ["*.ffn"], ["*.ffn*"]])
def test_overflow_in_a_decoder(family, targets):
    """The residual sum before the last norm, which RT-DETR and D-FINE clamped.

    '*.ffn*' matches the layers inside as well; they are measured, the whole is clamped.
    """
    options = dict(targets=targets, limit=60000.0, active=bool(targets))
    runner = family("detr", **options, when="always" if targets else "triggered")
    runner.model.init_weights()
    runner.model.init_weights = lambda: None
    layer = f"{LAST}.layers.1"
    with torch.no_grad():
        runner.model.get_parameter(f"{layer}.weight").mul_(1e7)
    inside = []
    runner.model.get_submodule(layer).register_forward_pre_hook(
        lambda module, args: inside.append(is_autocast_enabled("cpu"))
    )
    if not targets:
        with pytest.raises(ValueError, match="invalid numeric entries"):
            runner.train()
        return
    runner.train()
    assert inside == [False, False]
    for record in helpers.records(runner):
        assert not record.any_nonfinite("loss")
        assert sorted(record.values["clamped"]) == sorted(
            f"{part}.layers.{i}.ffn"
            for part in ("encoder", "decoder")
            for i in range(6)
        )
        assert record.get("clamped", LAST) > 0.5
        assert record.get("logit_absmax", LAST) > 65504
        assert (f"{LAST}.layers.1" in record.values["logit_absmax"]) is (
            targets == ["*.ffn*"]
        )


class RawPixels(small.Small):
    """A linear classifier: its logits are in the thousands, and healthy."""

    def __init__(self):
        super().__init__()
        self.bbox_head.fc_cls = torch.nn.Linear(8, 4)

    def forward(self, x, y, mode="loss"):
        logits = self.bbox_head.fc_cls(x * 255)
        return self.losses(x, logits, y) if mode == "loss" else logits


@pytest.mark.parametrize("length", [dict(iters=150), dict(epochs=5)])
def test_large_logits_that_overflow_nothing_are_left_alone(tmp_path, length):
    slowly = dict(wrapper=dict(optimizer=dict(type="SGD", lr=0.01)))
    stock = small.build(tmp_path, [], RawPixels, **slowly, **length)
    stock.train()
    suite = dict(type="amp_hooks.StabilityHook", preflight=None)
    runner = small.build(tmp_path, [suite], RawPixels, **slowly, **length)
    runner.train()
    assert max(r.all("logit_absmax")[0] for r in helpers.records(runner)[9:]) > 1000
    assert small.ledger(runner, "clamp_on", "rollback", "diverged") == []
    assert small.same(small.state(stock), small.state(runner))


class Checkpointed(small.Small):
    """Its classifier is computed once more in the backward pass, as far as needed."""

    def forward(self, x, y, mode="loss"):
        features = self.backbone(x)
        logits = checkpoint(self.bbox_head.fc_cls, features, use_reentrant=False)
        return self.losses(features, logits, y)


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_activation_checkpointing_of_the_classifier(tmp_path, dtype):
    """torch leaves what is computed again as soon as it can, by an exception."""
    states = []
    for model in (small.Small, Checkpointed):
        hooks = [clamp(when="always", limit=0.5)]
        runner = small.build(tmp_path, hooks=hooks, model=model, dtype=dtype, iters=30)
        runner.train()
        assert small.ledger(runner, "failure") == []
        states.append(small.state(runner))
    assert small.same(*states)
