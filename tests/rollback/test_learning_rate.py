"""The trajectory after a factor is the factor times the undisturbed one."""

import copy
import math

import pytest
import torch
from mmdet.registry import PARAM_SCHEDULERS as MMDET_SCHEDULERS
from mmengine.optim import OptimWrapper
from mmengine.optim.scheduler import CosineAnnealingLR, LinearLR
from mmengine.optim.scheduler.param_scheduler import _ParamScheduler
from mmengine.registry import DefaultScope

from amp_hooks.rollback.learning_rate import (
    TemporaryLR,
    recovered,
    scale_lr,
    warmup_factor,
)
from tests.rollback.schedules import CHAINS, EPOCH, EVERY, OPTIONS, kind, registered

STEPS = 24


def make_wrapper(*, groups=2, lr=0.1, optimizer=torch.optim.SGD, **options):
    layers = [dict(params=torch.nn.Linear(2, 2).parameters()) for _ in range(groups)]
    if groups > 1 and not isinstance(lr, torch.Tensor):
        layers[1]["lr"] = lr / 5
    return OptimWrapper(optimizer(layers, lr=lr, **options))


def build(cfgs, wrapper):
    default = dict(optimizer=wrapper, epoch_length=EPOCH)
    # Whatever the scope of the last runner in this process.
    with DefaultScope.overwrite_default_scope("mmdet"):
        return [MMDET_SCHEDULERS.build(dict(cfg), default_args=default) for cfg in cfgs]


def run(wrapper, schedulers, steps=STEPS, *, change=None, temporary=None):
    """Learning rates of all groups in every iteration, as a Runner steps them."""
    seen = []
    for t in range(steps):
        if change and t in change:
            scale_lr(wrapper.param_groups, schedulers, change[t])
        seen.append([float(group["lr"]) for group in wrapper.param_groups])
        if temporary:
            temporary.apply(wrapper.param_groups, warmup_factor(t, steps))
        wrapper.optimizer.step()
        if temporary:
            temporary.undo()
        for scheduler in schedulers:
            ends = (t + 1) % EPOCH == 0
            if not scheduler.by_epoch:
                scheduler.step()
            elif getattr(scheduler, "need_val_args", False):
                # Every step an epoch, for the sake of a short test.
                scheduler.step()
                scheduler.step(dict(loss=max(1.0, 3.0 - t)))
            elif ends:
                scheduler.step()
    return seen


def times(change, t):
    return math.prod(f for at, f in change.items() if at <= t)


def assert_scaled(got, plain, change, rel):
    for t, (row, undisturbed) in enumerate(zip(got, plain)):
        expected = [times(change, t) * lr for lr in undisturbed]
        assert row == pytest.approx(expected, rel=rel, abs=0), f"step {t}"


def test_every_registered_scheduler_has_a_case():
    missing = {kind(name) for name in registered()} - set(OPTIONS)
    assert not missing, f"add options for {missing}, and look at what they keep"
    assert len(registered()) >= 30


def trajectory(cfgs, change=None, temporary=None, **options):
    wrapper = make_wrapper(**options)
    return run(wrapper, build(cfgs, wrapper), change=change, temporary=temporary)


@pytest.mark.parametrize(
    "cfgs", [c for c in EVERY if "param_name" not in c.values[0][0]]
)
def test_changed_at_any_step(cfgs):
    plain = trajectory(cfgs)
    assert len(plain[0]) == 3  # two groups, and the base learning rate
    assert len({tuple(row) for row in plain}) > 1  # the schedule is one
    for at in range(STEPS):
        assert_scaled(trajectory(cfgs, {at: 0.1}), plain, {at: 0.1}, rel=1e-12)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("cfgs", EVERY)
def test_changed_several_times_up_and_down(cfgs, groups):
    if isinstance(cfgs[0].get("min_value"), list):
        groups = 2  # as many as it has bounds
    change = {3: 0.1, 8: 0.1, 9: 2.0, 16: 70.0}
    got = trajectory(cfgs, change, groups=groups)
    assert_scaled(got, trajectory(cfgs, groups=groups), change, rel=1e-12)


@pytest.mark.parametrize("cfgs", EVERY)
def test_tensor_learning_rates(cfgs):
    """The groups', the initial and the base one start as one and the same tensor."""
    change = {1: 0.1, 7: 0.5, 9: 4.0}
    lr = torch.tensor(0.1, dtype=torch.float64)
    got = trajectory(cfgs, change, lr=lr.clone())
    assert_scaled(got, trajectory(cfgs, lr=lr), change, rel=1e-12)


@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1)], ids=["number", "tensor"])
@pytest.mark.parametrize("cfgs", EVERY)
def test_a_temporary_change_leaves_no_trace(cfgs, lr):
    plain = trajectory(cfgs, lr=copy.deepcopy(lr))
    assert trajectory(cfgs, lr=copy.deepcopy(lr), temporary=TemporaryLR()) == plain


class ClosedForm(_ParamScheduler):
    """Of a user: nothing of it is known but ``base_values``."""

    def __init__(self, optimizer, **kwargs):
        super().__init__(optimizer, "lr", **kwargs)

    def _get_value(self):
        return [v / (1 + self.last_step) for v in self.base_values]


class Triangle(_ParamScheduler):
    """Of a user: between bounds, one of them for each group."""

    def __init__(self, optimizer, **kwargs):
        self.eta_min, self.eta_max = 0.001, [0.4, 0.2, 0.4]
        super().__init__(optimizer, "lr", **kwargs)

    def _get_value(self):
        share = abs(self.last_step % 10 - 5) / 5
        return [self.eta_min + share * (v - self.eta_min) for v in self.eta_max]


@pytest.mark.parametrize("scheduler", [ClosedForm, Triangle])
def test_custom_schedulers(scheduler):
    cfgs, change = [dict(type=scheduler, by_epoch=False)], {5: 0.1, 11: 10.0}
    assert_scaled(trajectory(cfgs, change), trajectory(cfgs), change, rel=1e-12)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_other_parameters_are_left_alone(optimizer):
    """Schedulers of momentum and weight decay, every class, all chained."""

    def others(factor):
        options = dict(momentum=0.9) if optimizer is torch.optim.SGD else {}
        wrapper = make_wrapper(optimizer=optimizer, weight_decay=0.05, **options)
        cfgs = []
        for name in registered():
            options = dict(OPTIONS[kind(name)][0], type=name)
            if kind(name) != "ReduceOnPlateau":
                options["by_epoch"] = False
            if name.endswith("Momentum"):
                cfgs.append(options)
            elif name.endswith("ParamScheduler") and kind(name) != "OneCycle":
                cfgs.append(dict(options, param_name="weight_decay"))
        schedulers = build(cfgs, wrapper)
        assert len(schedulers) >= 19
        seen = []
        for t in range(STEPS):
            if t == 7:
                scale_lr(wrapper.param_groups, schedulers, factor)
            run(wrapper, schedulers, 1)
            seen.append(
                [
                    {k: v for k, v in group.items() if k not in ("params", "lr")}
                    for group in wrapper.param_groups
                ]
            )
            for group in seen[-1]:
                group.pop("initial_lr", None)
        return seen

    assert others(0.1) == others(1.0)


def test_a_scheduler_of_two_optimizers_is_scaled_once():
    wrapper = make_wrapper()
    scheduler = CosineAnnealingLR(wrapper, T_max=9, eta_min=0.01, by_epoch=False)
    scale_lr(wrapper.param_groups * 2, [scheduler, scheduler], 0.5)
    assert scheduler.eta_min == 0.005
    assert scheduler.base_values == [0.05, 0.01, 0.05]
    assert [group["lr"] for group in wrapper.param_groups] == [0.05, 0.01, 0.05]


def test_an_optimizer_without_a_learning_rate():
    group = dict(params=[], lr=None)
    temporary = TemporaryLR()
    scale_lr([group, dict(params=[])], [], 0.5)
    temporary.apply([group, dict(params=[])], 0.5)
    assert group["lr"] is None
    temporary.undo()
    assert group == dict(params=[], lr=None)


def test_a_tensor_learning_rate_is_changed_in_place():
    lr = torch.tensor(0.1, requires_grad=True)
    groups, temporary = [dict(lr=lr), dict(lr=lr)], TemporaryLR()
    scale_lr(groups, [], 0.5)
    assert all(group["lr"] is lr for group in groups)
    assert lr.item() == pytest.approx(0.05)
    before = lr.item()
    temporary.apply(groups, 0.3)
    assert lr.item() == pytest.approx(0.015)
    temporary.undo()
    assert all(group["lr"] is lr for group in groups)
    assert lr.item() == before


def test_a_temporary_change():
    wrapper = make_wrapper()
    base = wrapper.base_param_settings
    temporary = TemporaryLR()
    temporary.undo()  # nothing was applied
    temporary.apply(wrapper.param_groups, 0.3)
    assert [group["lr"] for group in wrapper.param_groups] == [
        0.1 * 0.3,
        0.02 * 0.3,
        0.1 * 0.3,
    ]
    assert wrapper.get_lr()["base_lr"] == [0.1 * 0.3]
    temporary.apply(wrapper.param_groups, 0.7)  # not 0.3 * 0.7
    assert base["lr"] == 0.1 * 0.7
    temporary.undo()
    assert [group["lr"] for group in wrapper.param_groups] == [0.1, 0.02, 0.1]
    base["lr"] = 0.4
    temporary.undo()  # a second time: what has been set since stays
    assert base["lr"] == 0.4


def test_a_temporary_change_is_what_the_optimizer_steps_with():
    layer = torch.nn.Linear(1, 1, bias=False)
    wrapper = OptimWrapper(torch.optim.SGD(layer.parameters(), lr=0.5))
    before = layer.weight.item()
    layer.weight.grad = torch.ones(1, 1)
    temporary = TemporaryLR()
    temporary.apply(wrapper.param_groups, 0.25)
    wrapper.optimizer.step()
    temporary.undo()
    assert layer.weight.item() == pytest.approx(before - 0.125)


def test_warmup_factor_is_that_of_linear_lr():
    iters = 9
    wrapper = make_wrapper(groups=1, lr=1.0)
    warmup = LinearLR(wrapper, start_factor=0.001, end=iters + 1, by_epoch=False)
    expected = [lr for (lr,) in run(wrapper, [warmup], iters + 4)]
    got = [warmup_factor(done, iters) for done in range(iters + 4)]
    assert got == pytest.approx(expected, rel=1e-12)
    assert got[0] == 0.001
    assert got[iters - 1] < 1.0
    assert got[iters:] == [1.0] * 4


@pytest.mark.parametrize(
    ("done", "iters", "start", "factor"),
    [
        (0, 0, 0.001, 1.0),
        (0, 1, 0.001, 0.001),
        (1, 1, 0.001, 1.0),
        (2, 4, 0.5, 0.75),
        (3, 4, 1.0, 1.0),
        (10**6, 4, 0.001, 1.0),
    ],
)
def test_warmup_factor(done, iters, start, factor):
    assert warmup_factor(done, iters, start) == factor


@pytest.mark.parametrize(
    ("factor", "step", "stretches"),
    [
        (0.1, 2.0, 4),
        (0.001, 2.0, 10),
        (0.125, 2.0, 3),
        (1 / 49, 49.0, 1),
        (0.9, 1.5, 1),
    ],
)
def test_recovery_ends_at_one(factor, step, stretches):
    change = []
    while factor < 1.0:
        larger = recovered(factor, step)
        assert factor < larger <= 1.0
        change.append(larger / factor)
        factor = larger
    assert len(change) == stretches
    assert factor == recovered(factor, step) == 1.0
    assert max(change) <= step * (1 + 1e-9)


def test_a_recovered_schedule_is_the_undisturbed_one():
    change, total = {2: 0.1}, 0.1
    for t in (6, 9, 12, 15):
        change[t] = recovered(total) / total
        total = recovered(total)
    assert total == 1.0
    got, plain = trajectory(CHAINS["rtmdet"], change), trajectory(CHAINS["rtmdet"])
    assert got[3] == pytest.approx([0.1 * lr for lr in plain[3]], rel=1e-12, abs=0)
    for row, undisturbed in zip(got[15:], plain[15:]):
        assert row == pytest.approx(undisturbed, rel=1e-12, abs=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: scale_lr([], [], 0), "scale_lr: factor must be greater than 0, got 0"),
        (lambda: scale_lr([], [], math.nan), "scale_lr: factor must be .* got nan"),
        (lambda: TemporaryLR().apply([], -1), "TemporaryLR: factor .* got -1"),
        (lambda: warmup_factor(-1, 5), "done must be at least 0, got -1"),
        (lambda: warmup_factor(0, -5), "iters must be at least 0, got -5"),
        (
            lambda: warmup_factor(0, 5, 0.0),
            "start must be greater than 0 and at most 1",
        ),
        (lambda: recovered(0.1, 1.0), "step must be greater than 1, got 1.0"),
        (lambda: recovered(0.0), "factor must be greater than 0, got 0.0"),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
