"""The gradient norm at each step, on real detectors."""

import pytest
import torch
from mmdet.models import RetinaNet
from mmdet.registry import MODELS
from mmengine.hooks import Hook

from amp_hooks.engine.torch_api import TORCH
from tests import helpers

RETINA_CLS = "bbox_head.retina_cls"


class CollectGrads(Hook):
    """The norms by hand, from the gradients as ``optimizer.step`` or clip gets them."""

    def __init__(self, scale=1.0):
        self.scale, self.norms, self.by_name = scale, [], []

    def before_train(self, runner):
        wrapper = runner.optim_wrapper
        clips, attribute = bool(wrapper.clip_grad_kwargs), "_clip_grad"
        original = wrapper._clip_grad
        if not clips:  # then gradients reach the scaler's step scaled
            scaler = getattr(wrapper, "loss_scaler", None)
            original = scaler.step if scaler else wrapper.optimizer.step

        def spy(*args, **kwargs):
            scale = 1.0 if clips else self.scale
            norms = {
                name: p.grad.double().norm().item() / scale
                for name, p in runner.model.named_parameters()
                if p.grad is not None
            }
            self.by_name.append(norms)
            total = sum(n**2 for n in norms.values()) ** 0.5
            part = [n for name, n in norms.items() if name.startswith("backbone.")]
            self.norms.append((total, sum(n**2 for n in part) ** 0.5))
            return original(*args, **kwargs)

        if clips:
            setattr(wrapper, attribute, spy)
        elif getattr(wrapper, "loss_scaler", None):
            wrapper.loss_scaler.step = spy
        else:
            wrapper.optimizer.step = spy


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
        hooks=helpers.MONITORS,
        precision=precision,
        accumulate=accumulate,
        options=scale,
    )
    collect = CollectGrads()
    runner.register_hook(collect)
    runner.train()
    steps = [r for r in helpers.records(runner) if r.all("found_inf")]
    assert len(steps) == len(collect.norms) == 6 // accumulate
    for record, (total, backbone) in zip(steps, collect.norms):
        assert record.get("gradnorm") == pytest.approx(total, rel=1e-4)
        assert record.get("gradnorm", "backbone") == pytest.approx(backbone, rel=1e-4)
        assert set(record.values["gradnorm"]) == {"", "backbone", "neck", "bbox_head"}


def test_gradient_groups_by_pattern_and_a_wrong_one(build):
    hook = dict(type="amp_hooks.GradNormMonitorHook", groups=dict(cls="*cls*"))
    runner = build("faster_rcnn", iters=1, hooks=[hook])
    runner.train()
    assert set(helpers.records(runner)[0].values["gradnorm"]) == {"", "cls"}
    hook["groups"] = dict(cls="*clss*")
    with pytest.raises(ValueError, match="groups.*'cls'.*matches no parameter"):
        build("faster_rcnn", iters=1, hooks=[hook]).train()


@pytest.mark.parametrize(
    "optimizer",
    [
        dict(type="AdamW", lr=1e-3, fused=True),
        dict(type="AdamW", lr=1e-3, foreach=True),
        dict(type="SGD", lr=1e-2, momentum=0.9, fused=True),
        dict(type="SGD", lr=1e-2, momentum=0.9, foreach=False),
    ],
    ids=lambda o: "-".join(str(v) for v in o.values()),
)
def test_with_fused_and_foreach_optimizers(build, optimizer):
    """A fused optimizer unscales inside its own step."""
    if TORCH < (2, 4) and "fused" in optimizer:
        pytest.skip("this torch has no fused optimizer for a CPU")
    runs = []
    for hooks in ([], helpers.MONITORS):
        runner = build(
            "retinanet",
            iters=4,
            hooks=hooks,
            options={
                "optim_wrapper.optimizer": dict(optimizer, _delete_=True),
                "optim_wrapper.clip_grad": None,
                "optim_wrapper.loss_scale": 256.0,
            },
        )
        collect = CollectGrads(scale=256.0)
        runner.register_hook(collect)
        runner.train()
        runs.append(helpers.state(runner))
    assert all(torch.equal(v, runs[1][k]) for k, v in runs[0].items())
    records = helpers.records(runner)
    assert [r.get("gradnorm") for r in records] == [
        pytest.approx(total, rel=1e-4) for total, _ in collect.norms
    ]
    assert [r.all("found_inf") for r in records] == [[0.0]] * 4


@MODELS.register_module()
class UnscalingRetinaNet(RetinaNet):
    """Unscales in its own training step, as users do who clip in parts."""

    def train_step(self, data, optim_wrapper):
        with optim_wrapper.optim_context(self):
            data = self.data_preprocessor(data, True)
            loss, log_vars = self.parse_losses(self._run_forward(data, mode="loss"))
        optim_wrapper.backward(loss)
        optim_wrapper.loss_scaler.unscale_(optim_wrapper.optimizer)
        grads = [p.grad for p in self.parameters() if p.grad is not None]
        self.norm = torch.stack([g.norm() for g in grads]).norm().item()
        optim_wrapper.step()
        optim_wrapper.zero_grad()
        return log_vars


def test_gradients_that_are_unscaled_already_are_not_unscaled_again(build):
    runner = build(
        "retinanet",
        iters=2,
        hooks=helpers.MONITORS,
        options={
            "model.type": "UnscalingRetinaNet",
            "optim_wrapper.clip_grad": None,
            "optim_wrapper.loss_scale": 512.0,
        },
    )
    runner.train()
    assert helpers.records(runner)[-1].get("gradnorm") == pytest.approx(
        runner.model.norm, rel=1e-4
    )


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_fault_names_the_parameters(build, precision):
    fault = helpers.fault("gradient", 2, where="bbox_head.retina_reg.weight")
    runner = build(
        "retinanet",
        iters=3,
        hooks=[fault, *helpers.MONITORS],
        precision=precision,
        options={"optim_wrapper.loss_scale": 128.0} if precision == "float16" else {},
    )
    runner.train()
    (line,) = helpers.ledger(runner, "overflow")
    assert line["iter"] == 2
    assert line["nonfinite_grads"] == ["bbox_head.retina_reg.weight"]
    assert line["nonfinite_grads_total"] == 1


def test_the_largest_gradients_are_logged_at_the_interval(build):
    hook = dict(type="amp_hooks.GradNormMonitorHook", top_k=3, top_k_interval=2)
    runner = build(
        "retinanet",
        iters=6,
        accumulate=3,
        hooks=[hook],
        precision="float32",
        options={"log_level": "INFO"},
    )
    collect = CollectGrads()
    runner.register_hook(collect)
    runner.train()
    named = [r.values.get("top_gradnorm", {}) for r in helpers.records(runner)]
    # Due at iterations 2 and 4 (counted from 1), noted at the steps that follow.
    assert [bool(n) for n in named] == [False, False, True, False, False, True]
    for largest, expected in zip(named[2::3], collect.by_name):
        best = sorted(expected, key=expected.get)[:-4:-1]
        assert list(largest) == best
        assert list(largest.values()) == [
            pytest.approx(expected[k], rel=1e-4) for k in best
        ]
    assert helpers.log(runner).count("largest gradient norms: ") == 2


@pytest.mark.long
def test_adaptive_clip_bounds_a_spike_and_nothing_else(build):
    spike = helpers.fault("gradient", 12, where=f"{RETINA_CLS}.weight", value="x1e4")
    clip = dict(warmup=10, z_threshold=12.0)  # ordinary norms differ fourfold
    hook = dict(type="amp_hooks.GradNormMonitorHook", adaptive_clip=clip)
    for precision in ("float32", "float16"):
        states = []
        for hooks in ([], [hook], [spike, hook]):
            runner = build(
                "retinanet",
                iters=13,
                hooks=hooks,
                precision=precision,
                options={"optim_wrapper.loss_scale": 128.0}
                if precision == "float16"
                else {},
            )
            collect = CollectGrads(128.0 if precision == "float16" else 1.0)
            runner.register_hook(collect)
            runner.train()
            states.append(helpers.state(runner))
        records = helpers.records(runner)
        factors = [r.get("adaptive_clip") for r in records]
        assert factors[:12] == [1.0] * 12
        assert 0 < factors[12] < 0.1
        usual = max(r.get("gradnorm") for r in records[:12])
        assert records[12].get("gradnorm") > 20 * usual  # measured before the clip
        assert collect.norms[12][0] < 3 * usual  # what the optimizer got
        # Without a spike nothing was clipped, and nothing changed.
        assert all(torch.equal(v, states[1][k]) for k, v in states[0].items())


@pytest.mark.parametrize("guarded", [False, True])
def test_behind_a_forward_pass_that_is_not_finite_none_is_named(build, guarded):
    """With StepGuardHook all are NaN by its own doing; and it is no calibration."""
    fault = helpers.fault("loss", 2, where="loss_cls")
    guard = [dict(type="amp_hooks.StepGuardHook")] * guarded
    hooks = [fault, *helpers.MONITORS, *guard]
    options = {"optim_wrapper.loss_scale": 128.0}
    runner = build("retinanet", iters=4, hooks=hooks, options=options)
    runner.train()
    (line,) = helpers.ledger(runner, "overflow")
    assert (line["iter"], line["verdict"]) == (2, "FORWARD_NONFINITE")
    assert not any(name.startswith("nonfinite_grads") for name in line)
    assert line["skip"] == "forward"
