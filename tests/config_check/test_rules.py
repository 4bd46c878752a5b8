"""Each rule: when it speaks, and when it has to be silent."""

import numpy as np
import pytest
from mmengine.config import Config

from amp_hooks.config_check.check import RULES, check
from amp_hooks.config_check.facts import Facts, HookFacts, WrapperFacts
from amp_hooks.config_check.learning_rate import named_batch
from amp_hooks.config_check.of_config import facts_of_config

CLIPPED = dict(clips=True, max_norm=35)
LINEAR = dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0)
STEP = dict(type="MultiStepLR", milestones=[8, 11])
WARM = dict(param_scheduler=[dict(LINEAR, end=500), STEP])


def found(cfg, facts):
    cfg = dict(optim_wrapper=dict(), **cfg) if "optim_wrapper" not in cfg else cfg
    return [finding for rule in RULES for finding in rule(cfg, facts)]


def names(cfg, facts):
    return [finding.name for finding in found(cfg, facts)]


def wrapper(**more):
    return WrapperFacts(**{**CLIPPED, **more})


def hooks(*names_, **arguments):
    return tuple(HookFacts(frozenset([n]), 50, arguments) for n in names_)


def run(*wrappers, **more):
    return Facts(wrappers=wrappers or (wrapper(),), **more)


def half(**more):
    return wrapper(kind="AmpOptimWrapper", dtype="float16", **more)


def test_a_sound_recipe_is_silent():
    assert found(WARM, run(half())) == []


def test_a_runner_that_was_not_built_from_a_config():
    """Its schedulers are objects, of which the config knows nothing."""
    assert [f for rule in RULES for f in rule({}, run(half()))] == []


# --- loss scale -----------------------------------------------------------------------
@pytest.mark.parametrize(
    ("facts", "speaks"),
    [
        (run(half(static_scale=512.0)), True),
        (run(half(static_scale=512.0), hooks=hooks("LossScaleMonitorHook")), True),
        (run(half(static_scale=512.0), hooks=hooks("StepGuardHook")), False),
        (run(half(static_scale=512.0), hooks=hooks("RollbackHook")), False),
        (run(half()), False),
        # Gradients of BF16 do not overflow: what is infinite there is lost anyway.
        (run(wrapper(dtype="bfloat16", static_scale=512.0)), False),
    ],
)
def test_a_static_loss_scale(facts, speaks):
    assert names(WARM, facts) == ["static_loss_scale"] * speaks


def test_each_optimizer_is_told_by_its_key():
    facts = run(half(name="neck", static_scale=512.0), half(name="head", clips=False))
    first, second = found(WARM, facts)
    assert first.what.startswith("optim_wrapper.neck.loss_scale=512 is static")
    assert first.lines == "optim_wrapper = dict(neck=dict(loss_scale='dynamic'))"
    assert second.lines == (
        "optim_wrapper = dict(head=dict(clip_grad=dict(max_norm=35, norm_type=2)))"
    )


# --- clipping -------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("facts", "speaks"),
    [
        (run(half(clips=False)), True),
        (run(wrapper(dtype="bfloat16", clips=False)), True),
        (run(wrapper(clips=False)), False),  # FP32, as most of MMDetection's configs
        (run(half(clips=True, max_norm=None)), False),  # by value
        (
            run(
                half(clips=False),
                hooks=hooks("GradNormMonitorHook", adaptive_clip={1: 2}),
            ),
            False,
        ),
        (run(half(clips=False), hooks=hooks("GradNormMonitorHook")), True),
    ],
)
def test_clip_grad(facts, speaks):
    assert names(WARM, facts) == ["no_clip_grad"] * speaks


# --- warm-up --------------------------------------------------------------------------
def short(end, **more):
    return dict(param_scheduler=[dict(LINEAR, end=end), STEP], **more)


@pytest.mark.parametrize(
    ("cfg", "facts", "had"),
    [
        (WARM, run(max_iters=90000), None),
        (short(100), run(max_iters=90000), "100 iterations; this run should have 500."),
        (short(499), run(max_iters=90000), "499 iterations; this run should have 500."),
        ({}, run(max_iters=90000), "none; this run should have 500."),
        (dict(param_scheduler=[STEP]), run(), "none; this run should have 500."),
        (dict(param_scheduler=STEP), run(), "none; this run should have 500."),
        # A twentieth of a short run is enough.
        (short(50), run(max_iters=700), None),
        (short(30), run(max_iters=700), "30 iterations; this run should have 70 (a"),
        (short(50), run(), None),  # the length of the run is not known
        ({}, run(max_iters=99), None),  # a trial
        ({}, run(max_iters=100), "none; this run should have 10 (a"),
        # Counted in epochs.
        (
            dict(param_scheduler=[dict(type="QuadraticWarmupLR", end=1), STEP]),
            run(epoch_length=20, max_iters=90000),
            "20 iterations; this run should have 500.",
        ),
        (
            dict(param_scheduler=[dict(type="QuadraticWarmupLR", end=5), STEP]),
            run(epoch_length=925, max_iters=277500),
            None,
        ),
        (dict(param_scheduler=[dict(type="QuadraticWarmupLR", end=1)]), run(), None),
        # DETR and its kin clip so hard that they go without.
        (dict(param_scheduler=[STEP]), run(wrapper(max_norm=0.1)), None),
        (dict(param_scheduler=[STEP]), run(wrapper(max_norm=35)), "none"),
        # It is over.
        ({}, run(max_iters=90000, iteration=500, resume=True), None),
        ({}, run(max_iters=90000, iteration=499, resume=True), "none"),
        # A scheduler of the user's own may do anything.
        (dict(param_scheduler=[dict(type="MyWarmupLR"), STEP]), run(), None),
        # One schedule for each of several optimizers.
        (
            dict(param_scheduler=dict(a=[dict(LINEAR, end=500)], b=[STEP])),
            run(wrapper(name="a"), wrapper(name="b")),
            "none",
        ),
    ],
)
def test_warmup(cfg, facts, had):
    findings = found(cfg, facts)
    assert [f.name for f in findings] == ["short_warmup"] * (had is not None)
    if had:
        assert f"param_scheduler: {had}" in findings[0].what


def test_the_line_of_a_warmup_is_a_scheduler():
    (finding,) = found({}, run(max_iters=700))
    comment, line = finding.lines.splitlines()
    assert comment == "# in param_scheduler, first:"
    scheduler = eval(line.rstrip(","))
    assert found(dict(param_scheduler=[scheduler]), run(max_iters=700)) == []


# --- learning rate --------------------------------------------------------------------
def sgd(lr, momentum=0.9, **more):
    model = dict(type="FasterRCNN", roi_head=dict(), rpn_head=dict())
    optimizer = dict(type="SGD", lr=lr, momentum=momentum)
    return dict(WARM, model=model, optim_wrapper=dict(optimizer=optimizer), **more)


def of_batch(lr, batch_size, world_size=1, optimizer="SGD", **more):
    facts = wrapper(optimizer=optimizer, lr=lr, **more)
    return run(facts, batch_size=batch_size, world_size=world_size)


@pytest.mark.parametrize(
    ("cfg", "facts", "times"),
    [
        (sgd(0.02), of_batch(0.02, 2, 8), None),
        (sgd(0.02), of_batch(0.02, 2, 4), None),  # twice: MMDetection does that as well
        (sgd(0.02), of_batch(0.02, 2, 3), "2.7"),
        (sgd(0.02), of_batch(0.02, 2), "8"),
        (sgd(0.02), of_batch(0.02, 2, accumulate=8), None),
        (sgd(0.0025), of_batch(0.0025, 2), None),  # scaled by hand
        (sgd(0.15), of_batch(0.15, 4), "30"),
        (sgd(0.02), run(wrapper(optimizer="SGD", lr=0.02)), None),  # no batch size
        (sgd(0.02, momentum=0), of_batch(0.02, 2), None),  # no rule for that
        (dict(WARM, model=dict(type="BaseReID", head={})), of_batch(0.1, 1, 8), None),
        (sgd(0.001), of_batch(0.001, 4, optimizer="AdamW"), None),
        (sgd(0.001), of_batch(0.001, 4, optimizer="Lion"), None),
        (
            sgd(0.02, auto_scale_lr=dict(enable=True, base_batch_size=16)),
            of_batch(0.02, 2),
            None,
        ),
        (  # 0.08 for the 8 images of a step
            sgd(0.02, auto_scale_lr=dict(enable=True, base_batch_size=2)),
            of_batch(0.02, 8),
            "8",
        ),
        # Without the file, lr may have been scaled by hand: only the rule for SGD.
        (
            sgd(0.0025, auto_scale_lr=dict(enable=False, base_batch_size=16)),
            of_batch(0.0025, 2),
            None,
        ),
    ],
)
def test_learning_rate(cfg, facts, times):
    findings = found(cfg, facts)
    assert [f.name for f in findings] == ["high_lr"] * (times is not None)
    if times:
        assert f"is {times} times what linear scaling gives: 0.02" in findings[0].what


@pytest.mark.parametrize(
    ("lr", "batch_size", "world_size", "times"),
    [
        (0.0001, 2, 8, None),  # DETR's
        (0.004, 32, 8, None),  # RTMDet's
        (0.002, 8, 1, None),
        (0.004, 32, 1, None),  # 2.8 times: the square root forgives
        (0.0025, 2, 1, "7.1"),
        (0.02, 2, 8, "20"),  # SGD's
    ],
)
def test_adamw_has_a_usual_range(lr, batch_size, world_size, times):
    findings = found(sgd(lr), of_batch(lr, batch_size, world_size, optimizer="AdamW"))
    assert [f.name for f in findings] == ["high_lr"] * (times is not None)
    if times:
        what = f"is {times} times what scaling by the square root gives: 0.004 for 256"
        assert what in findings[0].what
        right = findings[0].remedies["lr"]
        again = of_batch(right, batch_size, world_size, optimizer="AdamW")
        assert found(sgd(right), again) == []


def test_adamw_as_auto_scale_lr_has_it():
    scaled = dict(enable=True, base_batch_size=16)
    facts = of_batch(0.004, 32, 8, optimizer="AdamW")
    (finding,) = found(sgd(0.004, auto_scale_lr=scaled), facts)
    assert "lr=0.064, as auto_scale_lr has it, for 256 images" in finding.what
    assert "multiplies it by 16:" in finding.remedy
    right = finding.remedies["lr"]
    assert finding.lines == f"optim_wrapper = dict(optimizer=dict(lr={right}))"
    again = of_batch(right, 32, 8, optimizer="AdamW")
    assert found(sgd(right, auto_scale_lr=scaled), again) == []


@pytest.mark.parametrize(("dtype", "fails"), [("float16", True), ("", False)])
def test_clipping_that_ends_the_run(dtype, fails):
    (finding,) = found(WARM, run(wrapper(dtype=dtype, clip_raises=True)))
    assert (finding.name, finding.fails) == ("error_if_nonfinite", fails)
    assert finding.lines == (
        "optim_wrapper = dict(clip_grad=dict(error_if_nonfinite=False))"
    )


@pytest.mark.parametrize(
    ("name", "batch_size", "told"),
    [
        ("rtmdet_l_8xb32-300e_coco.py", None, (8, 32)),
        ("rtmdet_l_8xb32-300e_coco.py", 4, (8, 32)),
        ("deformable_detr_r50_16x2_50e_coco.py", 2, (16, 2)),
        ("deformable_detr_r50_16x2_50e_coco.py", 4, None),
        ("fcn_r50-d8_4xb4-80k_ade20k-512x512.py", 4, (4, 4)),
        ("fcn_ade20k-512x512.py", 4, None),
        ("x101-64x4d_fpn_1x_coco.py", 4, None),
        ("faster-rcnn_r50_fpn_1x_coco.py", 2, None),
    ],
)
def test_the_gpus_that_a_name_tells(name, batch_size, told):
    assert named_batch(name, batch_size) == told


def test_the_line_of_a_learning_rate_is_silent_once_written():
    (finding,) = found(sgd(0.15), of_batch(0.15, 4))
    assert finding.lines == "optim_wrapper = dict(optimizer=dict(lr=0.005))"
    assert "optim_wrapper.optimizer.lr=0.15 for 4 images a step (1 process x 4)" in (
        finding.what
    )
    assert found(sgd(0.005), of_batch(0.005, 4)) == []


# --- EMA ------------------------------------------------------------------------------
def ordered(*names_):
    return tuple(HookFacts(frozenset([n]), p) for n, p in names_)


@pytest.mark.parametrize(
    ("facts", "name"),
    [
        (run(resume=True, saved_ema=True), "resume_without_ema"),
        (run(resume=True, saved_ema=True, hooks=hooks("EMAHook")), None),
        (run(resume=True, saved_ema=False), None),
        (run(resume=True), None),  # the checkpoint could not be read
        (run(saved_ema=True), None),
        # MMEngine says itself that it begins to average anew.
        (run(resume=True, saved_ema=False, hooks=hooks("EMAHook")), None),
        (run(hooks=ordered(("EMAHook", 49), ("CheckpointHook", 90))), None),
        (
            run(hooks=ordered(("CheckpointHook", 90), ("EMAHook", 100))),
            "ema_after_checkpoint",
        ),
    ],
)
def test_ema(facts, name):
    assert names(WARM, facts) == ([name] if name else [])


# --- validation -----------------------------------------------------------------------
@pytest.mark.parametrize(
    ("val_cfg", "facts", "says"),
    [
        (dict(type="ValLoop", fp16=True), run(half()), "computes in FP16. There"),
        (
            dict(type="ValLoop", fp16=True),
            run(wrapper(dtype="bfloat16")),
            "computes in FP16, where training computes in bfloat16. There",
        ),
        (
            dict(fp16=True),
            run(wrapper()),
            "computes in FP16, where training computes in float32. There",
        ),
        (dict(type="ValLoop"), run(), None),
        (dict(type="ValLoop", fp16=False), run(), None),
        (None, run(), None),
    ],
)
def test_val_fp16(val_cfg, facts, says):
    findings = found(dict(WARM, val_cfg=val_cfg), facts)
    assert [f.name for f in findings] == ["val_fp16"] * bool(says)
    assert not says or says in findings[0].what


# --- CheckInvalidLossHook -------------------------------------------------------------
def test_check_invalid_loss_beside_ours():
    custom = [
        dict(type="NumClassCheckHook"),
        dict(type="CheckInvalidLossHook", interval=50, priority="VERY_LOW"),
        dict(type="amp_hooks.StepGuardHook", hysteresis=2),
    ]
    cfg = dict(WARM, custom_hooks=custom)
    beside = run(hooks=hooks("CheckInvalidLossHook", "StepGuardHook"))
    (finding,) = found(cfg, beside)
    assert finding.name == "check_invalid_loss"
    assert finding.lines == (
        "custom_hooks = [dict(type='NumClassCheckHook'), "
        "dict(type='amp_hooks.StepGuardHook', hysteresis=2)]"
    )
    # Where nothing of ours undoes an iteration, to end the run may be right.
    watching = hooks("CheckInvalidLossHook", "LossScaleMonitorHook")
    assert found(cfg, run(hooks=watching)) == []
    assert found(cfg, run(hooks=hooks("StepGuardHook"))) == []


# --- find_unused_parameters -----------------------------------------------------------
@pytest.mark.parametrize(
    ("cfg", "processes", "speaks"),
    [
        (dict(find_unused_parameters=True), 8, False),  # MMEngine reads it
        (dict(find_unused_parameters=True, model_wrapper_cfg=None), 8, False),
        (dict(find_unused_parameters=True, model_wrapper_cfg=dict()), 8, True),
        (dict(find_unused_parameters=True, model_wrapper_cfg=dict()), 1, False),
        (dict(find_unused_parameters=False, model_wrapper_cfg=dict()), 8, False),
        (
            dict(
                find_unused_parameters=True,
                model_wrapper_cfg=dict(find_unused_parameters=False),
            ),
            8,
            False,  # said twice, and the user sees both
        ),
    ],
)
def test_find_unused_parameters(cfg, processes, speaks):
    facts = run(world_size=processes)
    assert names(dict(WARM, **cfg), facts) == ["find_unused_parameters"] * speaks


def test_numbers_of_numpy():
    """As a config that computes its learning rate has them."""
    optimizer = dict(type="SGD", lr=np.float32(0.02), momentum=np.float64(0.9))
    cfg = Config(
        dict(
            model=dict(roi_head=dict()),
            optim_wrapper=dict(optimizer=optimizer, clip_grad=dict(max_norm=35)),
            train_dataloader=dict(batch_size=np.int64(2)),
            **WARM,
        )
    )
    assert [f.name for f in check(cfg, facts_of_config(cfg))] == ["high_lr"]
