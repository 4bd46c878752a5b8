"""What will fail is told before training, and training is what it would have been."""

import math

import pytest
import torch
from mmdet.models import DetDataPreprocessor, RetinaNet
from mmdet.registry import MODELS
from mmengine.hooks import Hook

import amp_hooks
from amp_hooks.engine.torch_api import is_autocast_enabled
from tests import helpers

PREFLIGHT = [dict(type="amp_hooks.AmpPreflightHook", config_check=False)]
HEADS = {
    "faster_rcnn": "roi_head.bbox_head.fc_cls",
    "retinanet": "bbox_head.retina_cls",
}
SHOWN = dict(log_level="INFO")


def findings(runner):
    """By name, as the hook has them."""
    return {f.name: f for f in helpers.hook_of(runner, "AmpPreflightHook").findings}


def looked_at(build, detector="retinanet", hooks=PREFLIGHT, prepare=None, **options):
    """A runner after one iteration, and what was found before it."""
    runner = build(detector, iters=1, hooks=hooks, **options)
    if prepare is not None:
        # As a checkpoint or an initialiser of the user's own would leave it.
        init = runner.model.init_weights
        runner.model.init_weights = lambda: (init(), prepare(runner.model))
    runner.train()
    return runner, findings(runner)


def head_times(factor, name):
    def prepare(model):
        with torch.no_grad():
            model.get_submodule(name).weight.mul_(factor)

    return prepare


# --- planted defects ------------------------------------------------------------------


def test_what_the_config_check_finds_is_on_the_same_screen(build):
    hooks = [dict(type="amp_hooks.AmpPreflightHook")]
    options = dict(log_level="WARNING", fp16=dict(loss_scale=512.0))
    runner, found = looked_at(build, hooks=hooks, options=options)
    assert list(found) == ["ignored_fp16"]
    assert "pre-flight: 1 finding" in helpers.log(runner)


@pytest.mark.parametrize("detector", HEADS)
@pytest.mark.parametrize("precision", ["float16", "float32"])
def test_a_head_initialised_far_too_large(build, detector, precision):
    prepare = head_times(1e4, HEADS[detector])
    _, found = looked_at(build, detector, prepare=prepare, precision=precision)
    assert HEADS[detector] in found["large_logits"].what
    assert not found["large_logits"].fails


@pytest.mark.parametrize("detector", HEADS)
def test_a_head_that_overflows_fails(build, detector):
    prepare = head_times(1e8, HEADS[detector])
    _, found = looked_at(build, detector, prepare=prepare)
    assert found["large_logits"].fails
    assert HEADS[detector] in found["large_logits"].what
    assert found["nonfinite_amp"].fails
    assert HEADS[detector] in found["nonfinite_amp"].what


def test_images_that_are_not_normalised(build):
    raw = {"model.data_preprocessor.mean": None, "model.data_preprocessor.std": None}
    _, found = looked_at(build, options=raw)
    assert list(found) == ["not_normalized"]
    assert not found["not_normalized"].fails  # BatchNorm makes up for it
    stored = {**raw, "model.backbone.norm_eval": True}
    _, found = looked_at(build, options=stored)
    assert found["not_normalized"].fails


def test_images_normalised_twice(build):
    step = dict(type="Normalize", mean=[123.7] * 3, std=[58.4] * 3, to_rgb=True)
    cfg = helpers.make_config("retinanet", helpers.ROOT, "unused")
    pipeline = [*cfg.train_dataloader.dataset.pipeline]
    pipeline.insert(-1, step)
    _, found = looked_at(build, options={"train_dataloader.dataset.pipeline": pipeline})
    assert list(found) == ["normalized_twice"]


@helpers.NEEDS_FP16
def test_a_model_in_half_precision(build):
    runner = build("retinanet", iters=1, hooks=PREFLIGHT)
    init = runner.model.init_weights
    runner.model.init_weights = lambda: (init(), runner.model.half())
    with pytest.raises(RuntimeError):
        runner.train()
    found = findings(runner)
    assert "Attempting to unscale FP16 gradients" in found["parameter_dtype"].what
    assert found["parameter_dtype"].fails
    assert found["raises"].fails  # FP16 images and FP32 weights, on a CPU


@MODELS.register_module()
class DoublePreprocessor(DetDataPreprocessor):
    def forward(self, data, training=False):
        data = super().forward(data, training)
        data["inputs"] = data["inputs"].double()
        return data


@helpers.NEEDS_FP16
def test_images_of_a_wrong_dtype(build):
    options = {"model.data_preprocessor.type": "DoublePreprocessor"}
    runner = build("retinanet", iters=1, hooks=PREFLIGHT, options=options)
    with pytest.raises(RuntimeError):
        runner.train()
    assert "float64" in findings(runner)["input_dtype"].what
    assert findings(runner)["raises"].fails


def test_a_frozen_model(build):
    runner, found = looked_at(
        build,
        prepare=lambda model: model.requires_grad_(False),
        hooks=[*PREFLIGHT, dict(type="amp_hooks.StepGuardHook")],
    )
    assert list(found) == ["no_gradient"]
    assert "requires_grad is False" in found["no_gradient"].what
    assert "No inf checks were recorded" in found["no_gradient"].remedy


def test_parameters_that_the_loss_does_not_use(build):
    def prepare(model):
        model.backbone.extra = torch.nn.Linear(2, 2)
        runner.optim_wrapper.optimizer.add_param_group(
            dict(params=list(model.backbone.extra.parameters()))
        )

    runner = build("retinanet", iters=1, hooks=PREFLIGHT)
    runner.register_hook(Before(lambda: prepare(runner.model)))
    runner.train()
    found = findings(runner)
    assert list(found) == ["unused_parameters"]
    assert "backbone.extra.weight" in found["unused_parameters"].what


class Before(Hook):
    priority = 0

    def __init__(self, action):
        self.action = action

    def before_train(self, runner):
        self.action()


@pytest.mark.parametrize(
    ("scale", "name", "fails"),
    [
        (2.0**40, "loss_scale_high", True),  # static
        (dict(init_scale=2.0**40), "loss_scale_high", False),
        (2.0**-20, "loss_scale_low", False),
    ],
)
def test_a_loss_scale_that_does_not_fit(build, scale, name, fails):
    wrapper = dict(scale, _delete_=True) if isinstance(scale, dict) else scale
    _, found = looked_at(build, options={"optim_wrapper.loss_scale": wrapper})
    assert list(found) == [name]
    assert found[name].fails is fails
    assert "loss_scale=dict(init_scale=" in found[name].lines


# --- FP16 validation ------------------------------------------------------------------


# MMEngine's own FP16 validation is BF16 on a CPU, which mmcv has not: none is run.
FP16_VALIDATION = {"val_cfg.fp16": True, "train_cfg.val_begin": 100}


@MODELS.register_module()
class FadingRetinaNet(RetinaNet):
    """Its backbone's output is beyond FP16 in evaluation only."""

    def extract_feat(self, inputs):
        feats = super().extract_feat(inputs)
        return feats if self.training else tuple(f * 1e8 for f in feats)


def test_fp16_validation_that_yields_nothing(build):
    options = {**FP16_VALIDATION, "model.type": "FadingRetinaNet"}
    _, found = looked_at(build, options=options, validate=True)
    assert list(found) == ["fp16_validation"]
    assert "bbox_head.retina_cls" in found["fp16_validation"].what


@pytest.mark.parametrize("detector", HEADS)
def test_fp16_validation_that_is_sound(build, detector):
    _, found = looked_at(build, detector, options=FP16_VALIDATION, validate=True)
    assert not found


def test_fp16_validation_is_not_looked_at_unless_configured(build):
    options = {"model.type": "FadingRetinaNet", "train_cfg.val_begin": 100}
    _, found = looked_at(build, options=options, validate=True)
    assert not found


# --- nothing is changed ---------------------------------------------------------------


@MODELS.register_module()
class RestlessRetinaNet(RetinaNet):
    """Draws random numbers, averages in a buffer and counts in an attribute."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.register_buffer("average", torch.zeros(()))
        self.calls = []

    def loss(self, inputs, samples):
        losses = super().loss(inputs * (1 + 0.01 * torch.rand(())), samples)
        self.calls.append(len(inputs))
        self.average.mul_(0.9).add_(losses["loss_bbox"][0].detach())
        weight = float(self.average) + len(self.calls)
        samples[0].gt_instances.labels = samples[0].gt_instances.labels.clone()
        return {k: [v * weight for v in vs] for k, vs in losses.items()}


RESTLESS = {"model.type": "RestlessRetinaNet"}


@pytest.mark.parametrize(
    ("detector", "options"),
    [
        ("faster_rcnn", dict(iters=3)),
        ("retinanet", dict(epochs=1, options=RESTLESS)),
        ("retinanet", dict(iters=4, accumulate=2, precision="float32")),
        ("retinanet", dict(epochs=1, precision="bfloat16", options=RESTLESS)),
        ("retinanet", dict(iters=3, options=FP16_VALIDATION, validate=True)),
        ("retinanet", dict(iters=3, options={"optim_wrapper.loss_scale": 2.0**40})),
    ],
)
def test_training_is_bit_identical_to_training_without_it(build, detector, options):
    runs = []
    for hooks in ([], PREFLIGHT):
        run = dict(options, options=dict(options.get("options", {})))
        runner = build(detector, hooks=hooks, **run)
        grads = Gradients()
        runner.register_hook(grads, priority="VERY_LOW")
        runner.train()
        runs.append((runner, helpers.losses(runner), helpers.state(runner)))
        assert grads.before == [None] * len(grads.before)
    (a, losses_a, state_a), (b, losses_b, state_b) = runs
    assert repr(losses_a) == repr(losses_b)
    assert state_a.keys() == state_b.keys()
    differ = [n for n, t in state_a.items() if not torch.equal(t, state_b[n])]
    assert [n for n in differ if not state_a[n].isnan().any()] == []
    assert torch.equal(torch.get_rng_state(), runs[-1][0].rng_after)
    assert getattr(a.model, "calls", 0) == getattr(b.model, "calls", 0)
    hubs = [r.message_hub.log_scalars.keys() for r in (a, b)]
    assert hubs[0] == hubs[1]
    (line,) = helpers.ledger(b, "preflight")
    assert line["iter"] == 0


class Gradients(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == 0:
            self.before = [p.grad for p in runner.model.parameters()]

    def after_train(self, runner):
        runner.rng_after = torch.get_rng_state()


def test_two_optimizers(build):
    from tests.integration.test_optim_wrapper_dict import options

    runs = []
    for hooks in ([], PREFLIGHT):
        runner = build("retinanet", iters=3, hooks=hooks, options=options())
        runner.train()
        runs.append(helpers.state(runner))
    assert [n for n in runs[0] if not torch.equal(runs[0][n], runs[1][n])] == []
    assert not findings(runner)


def test_one_frozen_optimizer_of_two_is_named(build):
    from tests.integration.test_optim_wrapper_dict import options

    runner = build("retinanet", iters=1, hooks=PREFLIGHT, options=options())
    init = runner.model.init_weights
    runner.model.init_weights = lambda: (
        init(),
        runner.model.backbone.requires_grad_(False),
        runner.model.neck.requires_grad_(False),
    )
    with pytest.raises(Exception, match="grad"):
        runner.train()
    assert list(findings(runner)) == ["no_gradient"]
    assert "Optimizer body" in findings(runner)["no_gradient"].what


# --- what is done about it ------------------------------------------------------------


def acting(on_fail, **more):
    return [
        dict(
            type="amp_hooks.AmpPreflightHook",
            config_check=False,
            on_fail=on_fail,
            **more,
        )
    ]


def overflowing(build, hooks, **options):
    """A run whose head overflows in FP16 and not in FP32."""
    runner = build("retinanet", hooks=hooks, **options)
    init = runner.model.init_weights
    prepare = head_times(1e6, HEADS["retinanet"])
    runner.model.init_weights = lambda: (init(), prepare(runner.model))
    runner.train()
    return runner


def test_raise_ends_before_training_with_the_screen(build):
    runner = build("retinanet", iters=2, hooks=acting("raise"))
    init = runner.model.init_weights
    prepare = head_times(1e8, HEADS["retinanet"])
    runner.model.init_weights = lambda: (init(), prepare(runner.model))
    with pytest.raises(amp_hooks.PreflightError, match=r"1\. FAILS: .*retina_cls"):
        runner.train()
    assert runner.iter == 0
    (line,) = helpers.ledger(runner, "preflight")
    assert line["done"] == "raised"
    assert "large_logits" in line["fails"]


@pytest.mark.parametrize("on_fail", ["fp32", "bf16"])
@pytest.mark.parametrize("with_fallback", [False, True])
def test_precision_is_left_for_good(build, on_fail, with_fallback, tmp_path):
    fallback = dict(
        type="amp_hooks.PrecisionFallbackHook", on_verdict="GRAD_NONFINITE", iters=2
    )
    hooks = acting(on_fail) + [fallback] * with_fallback
    runner = overflowing(build, hooks, iters=4, work_dir=tmp_path)
    to = dict(fp32="float32", bf16="bfloat16")[on_fail]
    (line,) = helpers.ledger(runner, "preflight")
    assert line["done"] == to
    (fell,) = helpers.ledger(runner, "fallback")
    assert (fell["to"], fell["until"]) == (to, None)
    assert all(math.isfinite(loss) for loss in helpers.losses(runner))
    # The scaler as configured is in the checkpoint, and back after training.
    assert runner.optim_wrapper.loss_scaler.get_scale() == 65536.0
    assert runner.optim_wrapper.cast_dtype == torch.float16
    # A later start goes on in it, whatever its first batch shows.
    again = build(
        "retinanet",
        iters=5,
        hooks=hooks,
        work_dir=tmp_path,
        options=dict(resume=True),
    )
    seen = []
    again.register_hook(Precision(seen))
    again.train()
    assert again.iter == 5
    assert seen == [to]


class EndsOnce(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == 1 and not getattr(self, "ended", False):
            self.ended = True
            raise KeyError("of somebody else")


@pytest.mark.parametrize("to", ["bfloat16", "float32"])
def test_training_begun_again_after_an_exception_ends_as_configured(build, to):
    """MMEngine calls no after_train then, so the precision is still changed."""
    on_fail = dict(bfloat16="bf16", float32="fp32")[to]
    runner = build("retinanet", iters=3, hooks=acting(on_fail))
    init = runner.model.init_weights
    prepare = head_times(1e8, HEADS["retinanet"])
    runner.model.init_weights = lambda: (init(), prepare(runner.model))
    runner.register_hook(EndsOnce())
    with pytest.raises(KeyError, match="of somebody else"):
        runner.train()
    runner.train()
    assert runner.iter == 3
    assert runner.optim_wrapper.cast_dtype == torch.float16
    assert "optim_context" not in vars(runner.optim_wrapper)


class Precision(Hook):
    def __init__(self, seen):
        self.seen = seen

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        wrapper = runner.optim_wrapper
        if "optim_context" in vars(wrapper):
            self.seen.append("float32")
        else:
            self.seen.append(str(wrapper.cast_dtype).rsplit(".", 1)[-1])


def test_bf16_that_does_not_run_becomes_fp32(build):
    """mmcv has no BF16 on a CPU for two-stage detectors."""
    runner = build("faster_rcnn", iters=1, hooks=acting("bf16"))
    init = runner.model.init_weights
    prepare = head_times(1e8, HEADS["faster_rcnn"])
    runner.model.init_weights = lambda: (init(), prepare(runner.model))
    runner.train()
    (line,) = helpers.ledger(runner, "preflight")
    assert line["done"] == "float32"


def test_what_no_precision_cures_changes_none(build):
    runner, found = looked_at(
        build,
        hooks=[*acting("fp32"), dict(type="amp_hooks.StepGuardHook")],
        prepare=lambda model: model.requires_grad_(False),
    )
    assert found["no_gradient"].fails
    (line,) = helpers.ledger(runner, "preflight")
    assert line["done"] == "told"
    assert not helpers.ledger(runner, "fallback")


def test_validation_that_yields_nothing_is_done_in_fp32(build):
    options = {**FP16_VALIDATION, "model.type": "FadingRetinaNet"}
    options.pop("train_cfg.val_begin")
    runner, found = looked_at(
        build, hooks=acting("fp32"), options=options, validate=True
    )
    assert found["fp16_validation"].fails
    (line,) = helpers.ledger(runner, "preflight")
    assert line["done"] == "validation in float32"
    assert not helpers.ledger(runner, "fallback")
    assert runner.val_loop.fp16 is False


def test_findings_can_be_left_out(build):
    raw = {"model.data_preprocessor.mean": None, "model.data_preprocessor.std": None}
    hooks = acting("warn", ignore=["not_normalized"])
    _, found = looked_at(build, hooks=hooks, options=raw)
    assert not found


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (dict(on_fail="stop"), ValueError, "on_fail.*'warn'.*got 'stop'"),
        (dict(config_check=1), TypeError, "config_check"),
        (dict(ignore=[3]), TypeError, r"ignore.*not_normalized.*got \[3\]"),
    ],
)
def test_wrong_arguments(arguments, error, words):
    with pytest.raises(error, match=f"AmpPreflightHook: {words}"):
        amp_hooks.AmpPreflightHook(**arguments)


# --- when something of ours fails -----------------------------------------------------


@MODELS.register_module()
class HungryRetinaNet(RetinaNet):
    """FP32 has memory for one image only."""

    def loss(self, inputs, samples):
        if len(inputs) > 1 and not is_autocast_enabled("cpu"):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return super().loss(inputs, samples)


def test_fp32_that_does_not_fit_is_run_with_fewer_images(build):
    options = {"model.type": "HungryRetinaNet", "log_level": "WARNING"}
    runner, found = looked_at(build, options=options)
    assert not found
    assert runner.iter == 1
    assert "nothing found" in helpers.log(runner)
    assert "FP32 has memory for 1 of the batch's 2 images" in helpers.log(runner)


@MODELS.register_module()
class PairRetinaNet(HungryRetinaNet):
    """Takes no single image."""

    def loss(self, inputs, samples):
        losses = super().loss(inputs, samples)
        if len(inputs) < 2:
            raise ValueError("one image\nis too few")
        return losses


@pytest.mark.parametrize("precision", ["float16", "float32"])
def test_what_a_part_of_the_batch_raises_is_no_finding(build, precision):
    options = {"model.type": "PairRetinaNet", "log_level": "WARNING"}
    runner = build(
        "retinanet", iters=1, hooks=PREFLIGHT, options=options, precision=precision
    )
    if precision == "float32":
        with pytest.raises(torch.cuda.OutOfMemoryError):
            runner.train()
    else:
        runner.train()
    assert not findings(runner)
    assert "FP32 has memory for 1 of the batch's 2 images" in helpers.log(runner)
    assert "raises ValueError: one image (" in helpers.log(runner) or (
        "could not be run: ValueError: one image (" in helpers.log(runner)
    )


@MODELS.register_module()
class OwnStepRetinaNet(RetinaNet):
    """Its data preprocessor is called by a train_step of its own."""

    def train_step(self, data, optim_wrapper):
        return super().train_step(data["batch"], optim_wrapper)


def test_what_cannot_be_looked_at_costs_a_warning(build):
    def collate(batch):
        from mmengine.dataset import pseudo_collate

        return dict(batch=pseudo_collate(batch))

    runner = build(
        "retinanet",
        epochs=1,
        hooks=PREFLIGHT,
        options={"model.type": "OwnStepRetinaNet", "log_level": "WARNING"},
    )
    runner.register_hook(
        Before(lambda: setattr(runner.train_dataloader, "collate_fn", collate))
    )
    runner.train()
    assert runner.iter == 12
    assert not findings(runner)
    assert "the first batch could not be looked at: KeyError" in helpers.log(runner)


@MODELS.register_module()
class OwnLossRetinaNet(RetinaNet):
    """Its train_step gives ``loss`` what nobody else gives it; works in place."""

    def train_step(self, data, optim_wrapper):
        self.ready = True
        return super().train_step(data, optim_wrapper)

    def loss(self, inputs, samples):
        assert vars(self).pop("ready", False), "only from train_step"
        return super().loss(inputs, samples)


def test_a_train_step_of_its_own_is_not_judged_by_the_forward_pass(build):
    options = {"model.type": "OwnLossRetinaNet", "log_level": "WARNING"}
    runner, found = looked_at(build, options=options)
    assert not found
    assert runner.iter == 1
    words = "the forward pass could not be run: AssertionError: only from train_step"
    assert words in helpers.log(runner)


@MODELS.register_module()
class InPlaceRetinaNet(RetinaNet):
    """Normalises its images itself, in place."""

    def loss(self, inputs, samples):
        inputs.sub_(inputs.mean()).div_(100 * inputs.std())
        return super().loss(inputs, samples)


def test_images_that_the_model_normalises_in_place(build):
    _, found = looked_at(build, options={"model.type": "InPlaceRetinaNet"})
    assert not found


@MODELS.register_module()
class GatheringRetinaNet(RetinaNet):
    """Needs another process."""

    def loss(self, inputs, samples):
        torch.distributed.gather(inputs)
        return super().loss(inputs, samples)


def test_what_needs_other_processes_is_not_judged(build):
    runner = build(
        "retinanet",
        iters=1,
        hooks=PREFLIGHT,
        options={"model.type": "GatheringRetinaNet", "log_level": "WARNING"},
    )
    with pytest.raises(ValueError, match="process group"):  # there is none
        runner.train()
    assert not findings(runner)
    assert "a collective that one process cannot do alone" in helpers.log(runner)


def test_one_line_if_nothing_is_found(build):
    runner, found = looked_at(build, options=SHOWN)
    assert not found
    (line,) = [x for x in helpers.log(runner).splitlines() if "pre-flight" in x]
    assert "INFO - [amp_hooks] pre-flight: nothing found, " in line
    (event,) = helpers.ledger(runner, "preflight")
    # Rehearsed FP16 rounds, so something differs.
    differences, headroom = event["loss_differences"], event["headroom_bits"]
    assert differences.keys() == {"loss", "loss_cls", "loss_bbox"}
    assert 0 < max(differences.values()) < 0.05
    assert set(headroom) == {"bbox_head.retina_cls"}
    assert f"have {headroom['bbox_head.retina_cls']:g} doublings left" in line
    assert f"by {max(differences.values()):.2%} at most (loss_" in line
