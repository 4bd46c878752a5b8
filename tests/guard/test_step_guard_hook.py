import re

import pytest
import torch
from mmdet.models import RetinaNet
from mmdet.registry import MODELS
from mmengine.hooks import Hook

import amp_hooks
from amp_hooks.engine.checks import check_regexes
from amp_hooks.engine.runtime import Runtime
from tests import helpers

CLS = "bbox_head.retina_cls"
LOGGED = {"log_level": "WARNING"}
NO_HOOKS_LEFT = ("backward", "step")


def guard(**kwargs):
    return dict(type="amp_hooks.StepGuardHook", **kwargs)


def inject(*faults):
    return dict(type="amp_hooks.FaultInjectionHook", faults=list(faults))


# Every way in which one iteration can go wrong, with state to be harmed by it.
FAULTS = {
    "images": dict(what="images", value="inf"),
    "forward": dict(what="forward", where=CLS, value="nan"),
    "forward_inf": dict(what="forward", where="backbone.layer1", value="inf"),
    "gradient": dict(what="gradient", where="backbone.conv1.weight", value="inf"),
    "loss": dict(what="loss", value="nan"),
    "loss_inf": dict(what="loss", where="loss_cls", value="inf"),
    "raise": dict(what="raise"),
}


class Probe(Hook):
    """The learned state before and after each iteration."""

    priority = 60  # after all that decides, before the faults

    def __init__(self):
        self.before, self.after, self.inner_count = {}, {}, {}

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.before[runner.iter] = helpers.state(runner)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.after[runner.iter] = helpers.state(runner)
        self.inner_count[runner.iter] = runner.optim_wrapper.inner_count
        for p in runner.model.parameters():
            if self.inner_count[runner.iter] % 2 == 0:
                assert p.grad is None

    def changed(self, first, last=None):
        """What differs after iteration ``last`` from before iteration ``first``."""
        before, after = self.before[first], self.after[first if last is None else last]
        assert before.keys() == after.keys()
        return [k for k in before if not torch.equal(_bits(before[k]), _bits(after[k]))]


def _bits(tensor):
    """So that NaN equals itself and 0.0 differs from -0.0."""
    if tensor.is_floating_point() and tensor.dim():
        return tensor.view(torch.uint8)
    return tensor.nan_to_num(12345.0)


def scale(**kwargs):
    """GradScaler's arguments, in place of the config's 'dynamic'."""
    return dict(kwargs, _delete_=True)


def train(build, hooks, **options):
    runner = build("retinanet", hooks=hooks, **options)
    probe = Probe()
    runner.register_hook(probe, priority=60)
    runner.train()
    return runner, probe


def in_every_other_accumulation(accumulate, shift):
    """Each fault in an accumulation of its own, and where."""
    every = 2 * accumulate
    faults = {every * (i + 1) + shift: f for i, f in enumerate(FAULTS.values())}
    return inject(*(dict(fault, at=at) for at, fault in faults.items())), list(faults)


@pytest.mark.parametrize(
    ("precision", "accumulate", "shift", "loop"),
    [
        ("float32", 1, 0, dict(epochs=2)),
        ("float16", 1, 0, dict(iters=18)),
        ("bfloat16", 1, 0, dict(iters=18)),
        ("float32", 2, 1, dict(iters=32)),
        ("float16", 2, 0, dict(epochs=3)),
    ],
)
def test_a_bad_step_leaves_no_trace(build, precision, accumulate, shift, loop):
    faults, iterations = in_every_other_accumulation(accumulate, shift)
    options = {"default_hooks.ema.update_buffers": True, "default_hooks.ema.gamma": 1}
    if precision != "float32":
        options["optim_wrapper.loss_scale"] = scale(init_scale=256.0)
    runner, probe = train(
        build,
        [faults, guard(), *helpers.MONITORS],
        precision=precision,
        accumulate=accumulate,
        options=options,
        **loop,
    )
    for i in iterations:
        first = i - i % accumulate
        last = first + accumulate - 1
        assert probe.changed(first, last) == [], i
        healthy = last + 1
        assert len(probe.changed(healthy, healthy + accumulate - 1)) > 500
    assert all(t.isfinite().all() for t in helpers.state(runner).values())
    verdicts = {r.iter: r.verdict.value for r in helpers.records(runner)}
    expected = ["FORWARD_NONFINITE"] * len(iterations)
    expected[3] = "GRAD_NONFINITE" if precision == "float32" else "SCALE_OVERFLOW"
    expected[-1] = "RAISED"
    seen = [verdicts[i] for i in iterations]
    if accumulate == 1:
        assert seen == expected
    assert seen[-1] == "RAISED"
    assert probe.inner_count == {i: i + 1 for i in probe.after}
    vetoes = helpers.ledger(runner, "veto")
    assert len(vetoes) == len(iterations)
    assert helpers.hook_of(runner, "StepGuardHook").vetoes == len(iterations)
    assert helpers.records(runner)[-1].get("vetoes_total") == len(iterations)
    if precision != "float32":
        # Of all these only the overflow of the gradients is the scale's business.
        assert runner.optim_wrapper.loss_scaler.get_scale() == 128.0


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_what_happens_without_it(build, precision):
    """The faults are real: each does the harm that facts.md tells of."""
    harm = {}
    for name in ("images", "gradient", "loss"):
        runner, probe = train(
            build,
            [inject(dict(FAULTS[name], at=2)), *helpers.MONITORS],
            precision=precision,
            iters=4,
        )
        nonfinite = [k for k, t in probe.after[2].items() if not t.isfinite().all()]
        harm[name] = {re.split(r"[.\[]", k)[0] for k in nonfinite} | {
            "batchnorm" for k in nonfinite if "running_" in k
        }
        if precision == "float16":
            # GradScaler lowers the scale, whatever was the matter.
            assert runner.optim_wrapper.loss_scaler.get_scale() < 65536.0
    if precision == "float32":
        for name in harm:
            assert {"model", "optimizer", "ema"} <= harm[name]
    else:
        assert harm["images"] == {"model", "ema", "batchnorm"}
        assert harm["gradient"] == harm["loss"] == set()
    assert "batchnorm" in harm["images"]


def test_nothing_stays_attached(build):
    runner = build("retinanet", iters=2, hooks=[guard()])
    left = {}

    class Sees(Hook):
        priority = 0

        def before_train(self, runner):
            # With what MMEngine's schedulers have put there: they count steps.
            left.update(vars(runner.optim_wrapper))

    runner.register_hook(Sees())
    runner.train()
    for name in NO_HOOKS_LEFT:
        assert vars(runner.optim_wrapper).get(name) is left.get(name)
    assert "train_step" not in vars(runner.model)
    ema = helpers.hook_of(runner, "EMAHook")
    assert "after_train_iter" not in vars(ema)


# --- loss scale -----------------------------------------------------------------------


def scales(runner):
    return [r.get("scale") for r in helpers.records(runner)]


OVERFLOW = dict(what="gradient", where="backbone.conv1.weight", value="inf")


@pytest.mark.parametrize(
    ("loss_scale", "options", "expected"),
    [
        # dynamic: halved at each overflow, not below the floor
        (scale(init_scale=64.0), dict(scale_floor=16.0), [64, 32, 16, 16, 16, 16]),
        # a floor above what was configured does not raise it
        (scale(init_scale=8.0), dict(scale_floor=16.0), [8, 8, 8, 8, 8, 8]),
        # static: lowered too, and it stays
        (64.0, dict(scale_floor=16.0), [64, 32, 16, 16, 16, 16]),
        (64.0, dict(hysteresis=3), [64, 64, 64, 32, 32, 32]),
        (scale(init_scale=64.0), dict(hysteresis=2), [64, 64, 32, 16, 16, 16]),
        # with the scaler's own factors
        (scale(init_scale=64.0, backoff_factor=0.25), {}, [64, 16, 4, 1, 1, 1]),
    ],
)
def test_scale_after_overflows(build, loss_scale, options, expected):
    faults = inject(dict(OVERFLOW, at=0, iters=3))
    runner, _ = train(
        build,
        [faults, guard(**options), *helpers.MONITORS],
        iters=6,
        options={"optim_wrapper.loss_scale": loss_scale},
    )
    assert scales(runner) == expected


def test_overflow_at_the_floor_is_a_bad_iteration(build):
    faults = inject(dict(OVERFLOW, at=1, iters=2))
    runner, _ = train(
        build,
        [faults, guard(scale_floor=32.0)],
        iters=4,
        options={"optim_wrapper.loss_scale": scale(init_scale=64.0)},
    )
    verdicts = [r.verdict.value for r in helpers.records(runner)]
    assert verdicts == ["HEALTHY", "SCALE_OVERFLOW", "GRAD_NONFINITE", "HEALTHY"]


@pytest.mark.parametrize("what", ["loss", "forward", "raise"])
def test_a_bad_forward_pass_leaves_scale_and_growth_alone(build, what):
    options = {"optim_wrapper.loss_scale": scale(init_scale=64.0, growth_interval=4)}
    faults = inject(dict(FAULTS[what], at=2))
    runner, _ = train(
        build, [faults, guard(), *helpers.MONITORS], iters=7, options=options
    )
    # Doubled after four clean steps: iterations 0, 1, 3 and 4.
    expected = [64, 64, 64, 64, 64, 128, 128]
    if what == "raise":
        expected[2] = None  # there was no step
    assert scales(runner) == expected


@pytest.mark.parametrize("at", [2, 3])
def test_the_scale_never_changes_within_an_accumulation(build, at):
    runner, _ = train(
        build,
        [inject(dict(OVERFLOW, at=at)), guard(), *helpers.MONITORS],
        iters=8,
        accumulate=2,
        options={"optim_wrapper.loss_scale": 64.0},
    )
    seen = []
    for record in helpers.records(runner):
        if record.get("scale") is not None:
            seen.append((record.iter, record.get("scale")))
    assert seen == [(1, 64), (3, 64), (5, 32), (7, 32)]


def test_static_scale_and_counts_survive_a_resume(build, tmp_path):
    work = dict(
        work_dir=tmp_path / "w", options={"optim_wrapper.loss_scale": 64.0}, ema=False
    )
    hooks = [guard(hysteresis=2), *helpers.MONITORS]
    faults = inject(dict(OVERFLOW, at=0, iters=3))
    build("retinanet", iters=4, hooks=[faults, *hooks], **work).train()
    runner = build("retinanet", iters=7, hooks=hooks, **work)
    runner._resume = True
    runner.train()
    assert scales(runner) == [16, 16, 16]
    assert helpers.hook_of(runner, "StepGuardHook").vetoes == 3


# --- no gradients ---------------------------------------------------------------------


@MODELS.register_module()
class OddRetinaNet(RetinaNet):
    """Loses its gradients in one of several ways."""

    def __init__(self, *args, way, **kwargs):
        super().__init__(*args, **kwargs)
        self.way = way
        self.outside = torch.ones(1, requires_grad=True)  # no parameter of the model
        if way == "frozen":
            self.requires_grad_(False)

    def loss(self, *args, **kwargs):
        losses = super().loss(*args, **kwargs)
        if self.way in ("detached", "unused"):
            losses = {k: [x.detach() for x in v] for k, v in losses.items()}
        if self.way == "unused":
            losses["loss_other"] = self.outside.sum()
        return losses


WAYS = {
    "frozen": "all of its parameters are frozen (backbone.conv1.weight",
    "detached": "the loss is detached from its parameters (backbone.conv1.weight",
    "unused": "branches that hold them were not used",
}


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("way", WAYS)
def test_no_gradient_is_skipped_and_explained_once(build, way, precision):
    runner = build(
        "retinanet",
        iters=3,
        hooks=[guard(), *helpers.MONITORS],
        precision=precision,
        ema=False,
        options=dict(LOGGED, **{"model.type": "OddRetinaNet", "model.way": way}),
    )
    probe = Probe()
    runner.register_hook(probe, priority=60)
    runner.train()
    assert runner.iter == 3
    assert not [
        k for k in probe.changed(0, 2) if "running_" not in k and "num_" not in k
    ]
    assert helpers.log(runner).count(WAYS[way]) == 1
    if precision == "float16":
        assert runner.optim_wrapper.loss_scaler.get_scale() == 65536.0


def test_parameters_that_are_not_in_the_model(build):
    """The head is replaced after the optimizer was built."""
    runner = build("retinanet", iters=2, hooks=[guard()], ema=False, options=LOGGED)

    class Replace(Hook):
        def before_train(self, runner):
            for p in runner.model.parameters():
                p.requires_grad = True
            stranger = torch.nn.Parameter(torch.ones(1))
            runner.optim_wrapper.optimizer.param_groups[0]["params"] = [stranger]

    runner.register_hook(Replace(), priority=1)
    runner.train()
    assert "none of its 1 parameters belongs to the model" in helpers.log(runner)


def test_missing_gradients_can_be_an_error(build):
    runner = build(
        "retinanet",
        iters=3,
        hooks=[guard(on_missing_grads="raise")],
        ema=False,
        options={"model.type": "OddRetinaNet", "model.way": "detached"},
    )
    with pytest.raises(RuntimeError, match=r"StepGuardHook: .*detached.*\.detach\(\)"):
        runner.train()


# --- NaN as an exception --------------------------------------------------------------


def test_a_genuine_bug_passes_through_untouched(build):
    fault = dict(what="raise", at=1, value="index out of range")
    runner = build("retinanet", iters=3, hooks=[inject(fault), guard()])
    with pytest.raises(ValueError, match="index out of range"):
        runner.train()


def test_patterns_of_ones_own(build):
    fault = dict(what="raise", at=1, value="scores blew up")
    hooks = [inject(fault), guard(nan_errors=["blew up"])]
    runner = build("retinanet", iters=3, hooks=hooks, options=LOGGED)
    runner.train()
    (line,) = helpers.ledger(runner, "overflow")
    assert (line["verdict"], line["error"]) == ("RAISED", "ValueError: scores blew up")
    assert "iteration 1 was left out" in helpers.log(runner)


def test_an_end_to_exceptions(build):
    """Every policy terminates."""
    faults = inject(dict(what="raise", at=1, iters=100))
    runner = build("retinanet", iters=100, hooks=[faults, guard(max_nan_errors=4)])
    with pytest.raises(amp_hooks.TrainingDivergedError, match="5 training steps in a"):
        runner.train()
    assert runner.iter == 5
    (line,) = helpers.ledger(runner, "abort")
    assert "invalid numeric entries" in line["error"]


def test_single_exceptions_do_not_add_up(build):
    faults = inject(dict(what="raise", at=[1, 3, 5, 7]))
    runner = build("retinanet", iters=9, hooks=[faults, guard(max_nan_errors=1)])
    runner.train()
    assert helpers.hook_of(runner, "StepGuardHook").vetoes == 4


def test_zero_lets_exceptions_pass(build):
    hooks = [inject(dict(what="raise", at=1)), guard(max_nan_errors=0)]
    runner = build("retinanet", iters=3, hooks=hooks)
    with pytest.raises(ValueError, match="invalid numeric entries"):
        runner.train()


def test_exceptions_count_towards_a_rollback(build):
    hooks = [
        inject(dict(what="raise", at=3, iters=3)),
        guard(),
        dict(type="amp_hooks.RollbackHook", interval=2, patience=3),
    ]
    runner = build("retinanet", iters=8, hooks=hooks)
    runner.train()
    (line,) = helpers.ledger(runner, "rollback")
    assert (line["iter"], line["verdict"]) == (5, "RAISED")


@pytest.mark.parametrize("at", [4, 5])
def test_a_rollback_drops_the_accumulation_that_has_begun(build, at):
    """No step is taken with half of the gradients, or with those of old weights.

    The rollback is decided at the end of the accumulation of iterations 4 and 5.
    """
    hooks = [
        inject(dict(what="loss", value="nan", at=at)),
        guard(),
        dict(
            type="amp_hooks.RollbackHook",
            interval=2,
            probation=0,
            patience=1,
            lr_factor=1.0,
        ),
    ]
    runner, probe = train(build, hooks, iters=8, accumulate=2, precision="float32")
    (line,) = helpers.ledger(runner, "rollback")
    assert line["iter"] == 5
    assert probe.changed(4, 5) == []
    assert len(probe.changed(6, 7)) > 500


# --- other hooks ----------------------------------------------------------------------


def test_warns_of_check_invalid_loss(build):
    hooks = [guard(), dict(type="CheckInvalidLossHook")]
    runner = build("retinanet", iters=1, hooks=hooks, options=LOGGED)
    runner.train()
    assert "CheckInvalidLossHook ends the run at a loss" in helpers.log(runner)


def test_logits_that_are_not_finite_refuse_the_step_though_the_loss_is(build):
    """-inf for every class: sigmoid gives 0, and the loss is finite."""
    fault = dict(what="forward", where=CLS, value="-inf", at=2)
    runner, probe = train(
        build,
        [inject(fault), guard(), *helpers.MONITORS],
        iters=4,
        precision="float32",
    )
    record = helpers.records(runner)[2]
    assert record.verdict.value == "FORWARD_NONFINITE"
    assert probe.changed(2) == []


def test_an_infinite_logit_that_is_clamped_is_no_fault(build):
    fault = dict(what="forward", where=CLS, value="inf", at=2)
    clamp = dict(type="amp_hooks.HeadClampHook", when="always", targets=CLS)
    runner, probe = train(
        build,
        [inject(fault), guard(), clamp],
        iters=4,
        precision="float32",
    )
    assert Runtime.of(runner).recorder.records[2].verdict.value == "HEALTHY"
    assert len(probe.changed(2)) > 500


def test_regular_expressions_are_checked():
    with pytest.raises(ValueError, match=r"nan_errors holds '\('"):
        check_regexes("StepGuardHook", "nan_errors", "(")


# --- accumulation and policies --------------------------------------------------------


@pytest.mark.parametrize("what", ["gradient", "raise", "loss"])
def test_patience_is_not_lost_between_the_steps(build, what):
    """An iteration without a step looks healthy, but proves nothing."""
    hooks = [
        inject(dict(FAULTS[what], at=[3, 5, 7])),
        guard(),
        dict(type="amp_hooks.RollbackHook", interval=100, patience=3),
    ]
    runner = build(
        "retinanet", iters=10, accumulate=2, precision="float32", hooks=hooks
    )
    runner.train()
    (line,) = helpers.ledger(runner, "rollback")
    assert line["iter"] == 7


def test_exceptions_in_every_accumulation_come_to_an_end(build):
    faults = inject(dict(what="raise", at=list(range(0, 40, 2))))
    hooks = [faults, guard(max_nan_errors=3)]
    runner = build("retinanet", iters=40, accumulate=2, hooks=hooks)
    with pytest.raises(amp_hooks.TrainingDivergedError, match="4 training steps"):
        runner.train()
    assert runner.iter == 6


def test_faults_of_a_dropped_accumulation_do_not_leak_into_the_next(build):
    faults = inject(dict(what="raise", at=2), dict(what="loss", value="nan", at=3))
    runner, probe = train(
        build,
        [faults, guard(), *helpers.MONITORS],
        iters=8,
        accumulate=2,
        precision="float32",
    )
    verdicts = [r.verdict.value for r in helpers.records(runner)]
    # No gradient of the second has been looked at: there was no step to take.
    assert verdicts[2:4] == ["RAISED", "HEALTHY"]
    assert set(verdicts[4:]) == {"HEALTHY"}
    assert probe.changed(2, 3) == []
    assert any("running_mean" in k for k in probe.changed(4, 5))


def test_refuses_a_vote_that_could_hang(build):
    runner = build("retinanet", iters=1, hooks=[guard(vote=True)])
    runner.model.broadcast_buffers = True
    with pytest.raises(ValueError, match="broadcast_buffers=False"):
        runner.train()
