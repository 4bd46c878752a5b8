import pytest
import torch
from mmengine.hooks import Hook

import amp_hooks
from amp_hooks.precision.lower_precision import bfloat16_runs_on
from tests import helpers, small


def fallback(**kwargs):
    return dict(type="amp_hooks.PrecisionFallbackHook", **kwargs)


def rollback(**kwargs):
    return dict(type="amp_hooks.RollbackHook", patience=1, lr_factor=1.0, **kwargs)


def bad_loss(at, **kwargs):
    faults = [dict(what="loss", value="nan", at=at, **kwargs)]
    return dict(type="amp_hooks.FaultInjectionHook", faults=faults)


OVERFLOW = dict(
    type="amp_hooks.FaultInjectionHook",
    faults=[dict(what="gradient", where="backbone.conv1.weight", value="inf", at=2)],
)


class Precision(Hook):
    """In what dtype a convolution computes, by iteration; and under what scale."""

    priority = 95

    def __init__(self):
        self.dtype, self.scale = {}, {}

    def before_train(self, runner):
        def look(module, args, output):
            if torch.is_grad_enabled():
                mode = torch.overrides._get_current_function_mode()
                rehearsal = mode is not None and output.dtype == torch.float32
                dtype = torch.float16 if rehearsal else output.dtype
                self.dtype[runner.iter] = str(dtype).rsplit(".", 1)[-1]

        runner.model.backbone.conv1.register_forward_hook(look)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        scaler = getattr(runner.optim_wrapper, "loss_scaler", None)
        enabled = scaler is not None and scaler.is_enabled()
        self.scale[runner.iter] = scaler.get_scale() if enabled else None


def train(build, hooks, **options):
    runner = build(options.pop("detector", "retinanet"), hooks=hooks, **options)
    seen = Precision()
    runner.register_hook(seen)
    runner.train()
    return runner, seen


SCALE = {"optim_wrapper.loss_scale": dict(init_scale=64.0, _delete_=True)}


@pytest.mark.parametrize("loop", [dict(iters=12), dict(epochs=1)])
@pytest.mark.parametrize("to", ["bfloat16", "float32"])
def test_leaves_fp16_after_two_rollbacks_and_comes_back(build, to, loop):
    hooks = [
        bad_loss([2, 4]),
        rollback(),
        fallback(to=to, iters=4),
        dict(type="amp_hooks.StepGuardHook"),
        *helpers.MONITORS,
        helpers.SUITE[-1],
    ]
    runner, seen = train(build, hooks, options=SCALE, **loop)
    expected = ["float16"] * 5 + [to] * 4 + ["float16"] * 3
    assert list(seen.dtype.values()) == expected
    # Halved by each rollback, put away, brought back.
    assert list(seen.scale.values()) == [64, 64, 32, 32, *[None] * 4, 16, 16, 16, 16]
    away, back = helpers.ledger(runner, "fallback")
    assert (away["iter"], away["to"], away["until"]) == (4, to, 9)
    assert away["reason"] == "2 rollbacks"
    assert (back["iter"], back["to"], back["until"]) == (8, "float16", None)
    active = [r.get("fallback_active") for r in helpers.records(runner)]
    assert active == [0.0] * 4 + [1.0] * 4 + [0.0] * 4
    assert all(t.isfinite().all() for t in helpers.state(runner).values())


def test_for_good_by_default(build):
    hooks = [bad_loss([1, 2]), rollback(), fallback()]
    _, seen = train(build, hooks, iters=8, options=SCALE)
    assert list(seen.dtype.values()) == ["float16"] * 3 + ["bfloat16"] * 5


def test_fp32_follows_where_bf16_does_not_help(build):
    hooks = [bad_loss([1, 3, 5]), rollback(), fallback(after_rollbacks=1)]
    runner, seen = train(build, hooks, iters=8, options=SCALE)
    assert list(seen.dtype.values())[1:] == [
        "float16",
        *["bfloat16"] * 2,
        *["float32"] * 4,
    ]
    assert [e["to"] for e in helpers.ledger(runner, "fallback")] == [
        "bfloat16",
        "float32",
    ]


def test_what_runs_in_fp32_is_what_a_plain_fp32_run_computes(build):
    """From iteration 3 on, bit for bit: fallback against OptimWrapper."""
    runs = {}
    for name, precision, hooks in (
        ("fallen", "float16", [bad_loss(0), rollback(), FALL_AT_0]),
        ("plain", "float32", [bad_loss(0), rollback()]),
    ):
        runner, _ = train(build, hooks, iters=6, precision=precision)
        runs[name] = helpers.losses(runner)[1:], helpers.state(runner)
    assert runs["fallen"][0] == runs["plain"][0]
    plain, fallen = runs["plain"][1], runs["fallen"][1]
    assert [k for k in plain if not torch.equal(plain[k], fallen[k])] == []


FALL_AT_0 = fallback(after_rollbacks=1, to="float32")


@pytest.mark.parametrize(
    "cause",
    [
        [fallback(on_verdict="FORWARD_NONFINITE", patience=1, iters=4)],
        [rollback(), fallback(after_rollbacks=1, iters=4)],
    ],
    ids=["verdict", "rollback"],
)
def test_precision_changes_between_two_accumulations_only(build, cause):
    """Gradients of two loss scales do not add up."""
    hooks = [bad_loss([2]), *cause]
    _, seen = train(
        build,
        [*hooks, dict(type="amp_hooks.StepGuardHook")],
        iters=12,
        accumulate=2,
        options=SCALE,
    )
    dtypes = list(seen.dtype.values())
    # The fault is in the first iteration of the accumulation of 2 and 3.
    assert dtypes == ["float16"] * 4 + ["bfloat16"] * 4 + ["float16"] * 4


def test_a_collapsed_scale_starts_at_the_configured_one_after_rollbacks(build):
    hooks = [
        bad_loss([1, 2]),
        rollback(scale_factor=0.001),
        fallback(iters=2),
    ]
    _, seen = train(build, hooks, iters=7, options=SCALE)
    assert list(seen.scale.values()) == [64, 1, None, None, 64, 64, 64]


def test_on_request_of_a_verdict(build):
    """Overflow with the scale at its floor, which rollbacks would answer otherwise."""
    hooks = [OVERFLOW, fallback(on_verdict="GRAD_NONFINITE", patience=1)]
    options = {"optim_wrapper.loss_scale": dict(init_scale=1.0, _delete_=True)}
    runner, seen = train(build, hooks, iters=6, options=options)
    assert list(seen.dtype.values()) == ["float16"] * 3 + ["bfloat16"] * 3
    (line,) = helpers.ledger(runner, "fallback")
    assert line["reason"] == (
        "gradients were not finite, and no loss scale cures that, 1 times in a row"
    )


def test_a_collapsed_scale_starts_anew(build):
    hooks = [
        OVERFLOW,
        fallback(on_verdict="GRAD_NONFINITE", patience=1, iters=2),
        dict(type="amp_hooks.StepGuardHook", scale_floor=64.0),
    ]
    _, seen = train(build, hooks, iters=7, options=SCALE)
    assert list(seen.scale.values()) == [64, 64, None, None, 64, 64, 64]


@pytest.mark.parametrize("loss_scale", [dict(init_scale=64.0, _delete_=True), 64.0])
def test_survives_a_resume_and_its_checkpoints_are_good_for_fp16(
    build, tmp_path, loss_scale
):
    work = dict(
        work_dir=tmp_path / "w", options={"optim_wrapper.loss_scale": loss_scale}
    )
    policy = [rollback(), fallback(iters=4)]
    first = [bad_loss([1, 2]), *policy]
    train(build, first, iters=4, **work)
    (checkpoint,) = (tmp_path / "w").glob("iter_4.pth")
    saved = torch.load(checkpoint, weights_only=False)["optimizer"]["loss_scaler"]
    assert saved["scale"] == 16.0
    # With the hook it goes on where it was ...
    runner = build("retinanet", iters=9, hooks=policy, **work)
    runner._resume = True
    seen = Precision()
    runner.register_hook(seen)
    runner.train()
    assert list(seen.dtype.values()) == ["bfloat16"] * 3 + ["float16"] * 2
    assert seen.scale[8] == 16.0
    # ... and without it, in FP16.
    runner = build("retinanet", iters=6, hooks=[rollback()], **work)
    runner._resume, runner._load_from = True, str(checkpoint)
    runner.train()
    assert runner.optim_wrapper.loss_scaler.get_scale() == 16.0


def test_an_operator_without_bf16_leads_to_fp32(build):
    """mmcv's NMS, in the RPN of Faster R-CNN, on a CPU."""
    hooks = [bad_loss([1, 2]), rollback(), fallback()]
    runner, seen = train(
        build, hooks, detector="faster_rcnn", iters=6, options=SCALE, ema=False
    )
    assert [e["to"] for e in helpers.ledger(runner, "fallback")] == [
        "bfloat16",
        "float32",
    ]
    assert list(seen.dtype.values())[-2:] == ["float32"] * 2
    assert runner.iter == 6


@pytest.mark.parametrize("val_fp32", [True, False])
def test_validation_in_fp32(build, val_fp32):
    runner = build(
        "retinanet",
        iters=1,
        precision="float16",
        hooks=[fallback(val_fp32=val_fp32, on_verdict="RAISED")],
        validate=True,
        options={"val_cfg.fp16": True},
    )
    seen = []
    if not val_fp32:
        # MMEngine's autocast refuses FP16 on a CPU: enough to see what it asked for.
        runner.val_loop.run = lambda: seen.append(runner.val_loop.fp16)
        runner.call_hook("before_val")
        runner.val_loop.run()
        assert seen == [True]
        return
    runner.train()
    assert runner.val_loop.fp16 is False


def test_the_wrapper_is_given_back(build):
    hooks = [bad_loss(0), rollback(), FALL_AT_0]
    runner, _ = train(build, hooks, iters=3, options=SCALE)
    wrapper = runner.optim_wrapper
    assert "optim_context" not in vars(wrapper)
    assert wrapper.cast_dtype == torch.float16
    assert wrapper.loss_scaler.is_enabled()


@pytest.mark.parametrize(
    ("hooks", "options", "words"),
    [
        ([fallback()], {}, "no RollbackHook in custom_hooks"),
        ([fallback(), rollback()], dict(precision="float32"), "computes in FP32"),
    ],
)
def test_refuses_what_could_never_act(build, hooks, options, words):
    runner = build("retinanet", iters=1, hooks=hooks, **options)
    with pytest.raises(ValueError, match=words):
        runner.train()


def test_last_resort_when_the_rollbacks_are_used_up(build):
    """Each precision that is left gives one more attempt, for good; then it ends."""
    hooks = [
        bad_loss([1, 3, 5, 7, 9]),
        rollback(max_rollbacks=1),
        fallback(after_rollbacks=0, iters=1),
    ]
    runner = build("retinanet", iters=12, hooks=hooks)
    seen = Precision()
    runner.register_hook(seen)
    with pytest.raises(amp_hooks.TrainingDivergedError, match="iteration 7.*3 rollb"):
        runner.train()
    changes = [
        (e["iter"], e["to"], e["until"]) for e in helpers.ledger(runner, "fallback")
    ]
    assert changes == [(3, "bfloat16", None), (5, "float32", None)]
    assert [e["iter"] for e in helpers.ledger(runner, "rollback")] == [1, 3, 5]
    assert [seen.dtype[i] for i in (3, 4, 6)] == ["float16", "bfloat16", "float32"]


def test_a_device_that_does_not_tell_of_bf16_has_none():
    assert bfloat16_runs_on(torch.device("cpu"))
    assert not bfloat16_runs_on(torch.device("meta"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(to="float64"), "to must be one of"),
        (dict(on_verdict="NAN"), "on_verdict must be one of"),
        (dict(on_verdict=["HEALTHY"]), "on_verdict must be one of"),
        (dict(iters=0), "iters must be at least 1"),
    ],
)
def test_wrong_arguments(arguments, words):
    with pytest.raises(ValueError, match=words):
        amp_hooks.PrecisionFallbackHook(**arguments)


class Boom(small.Hook):
    """A forward pass that raises because of NaN, in some iterations."""

    priority = "VERY_HIGH"

    def __init__(self, at):
        self.at = at

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        runner.model.boom = runner.iter in self.at


class Explosive(small.Small):
    def losses(self, features, logits, y):
        if self.boom:
            raise FloatingPointError("NaN in the loss")
        return super().losses(features, logits, y)


def test_a_rollback_in_the_midst_of_an_accumulation(tmp_path):
    """No gradient waits any more then, so the precision may change at once."""
    hooks = [
        Boom(range(12, 14)),
        dict(type="amp_hooks.StepGuardHook"),
        dict(type="amp_hooks.RollbackHook", interval=4, patience=2, probation=0),
        dict(type="amp_hooks.PrecisionFallbackHook", after_rollbacks=1, to="float32"),
    ]
    runner = small.build(
        tmp_path,
        hooks,
        model=Explosive,
        dtype="bfloat16",
        iters=40,
        wrapper=dict(accumulative_counts=4),
    )
    runner.train()
    (back,), (away,) = (helpers.ledger(runner, e) for e in ("rollback", "fallback"))
    assert back["iter"] == away["iter"] == 13
