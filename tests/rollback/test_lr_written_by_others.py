"""A cut of the learning rate lasts, whoever writes it; panels tell what is used."""

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook, ParamSchedulerHook

from amp_hooks.rollback.held_rate import HeldRate
from tests import helpers
from tests.small import RaiseLR, SpoilInputs, build, ledger

ITERS, AT = 60, 20
TOLD = "the learning rate is written by something else"


def suite(**rollback):
    rollback = dict(dict(interval=10, probation=2, warmup_iters=0), **rollback)
    return dict(type="amp_hooks.StabilityHook", preflight=None, rollback=rollback)


class Schedule(ParamSchedulerHook):
    """As YOLOv5ParamSchedulerHook of MMYOLO: absolute values, from ``initial_lr``."""

    priority = 9

    def __init__(self, from_config=False):
        self.from_config = from_config

    def before_train(self, runner):
        groups = runner.optim_wrapper.optimizer.param_groups
        for group in groups:
            group.setdefault("initial_lr", group["lr"])
        self.base = [0.1 if self.from_config else g["initial_lr"] for g in groups]

    def write(self, runner, iteration):
        groups = runner.optim_wrapper.optimizer.param_groups
        for base, group in zip(self.base, groups):
            group["lr"] = base * self.share(iteration)

    @staticmethod
    def share(iteration):
        if iteration <= 5:
            return np.interp(iteration, [0, 5], [0.0, 1.0])
        return 1 - 0.9 * iteration / ITERS

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.write(runner, runner.iter)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        pass

    after_train_epoch = after_val_epoch = lambda self, *a, **k: None


class Late(Schedule):
    priority = "LOW"


class After(Schedule):
    """Writes what the next iteration is to have."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        pass

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.write(runner, runner.iter + 1)


class Relative(Schedule):
    """Goes on from the present learning rate, as a chained scheduler does."""

    def write(self, runner, iteration):
        for group in runner.optim_wrapper.optimizer.param_groups:
            if iteration > 0:
                group["lr"] *= 0.99

    @staticmethod
    def share(iteration):
        return 0.99**iteration


class Used(Hook):
    """The learning rate of each step, by iteration; and what the panel says."""

    priority = "LOWEST"

    def __init__(self):
        self.rates, self.factors, self.logged = {}, {}, {}

    def before_train(self, runner):
        optimizer = runner.optim_wrapper.optimizer
        original = optimizer.step

        def step(*args, **kwargs):
            result = original(*args, **kwargs)
            self.rates[runner.iter] = float(optimizer.param_groups[0]["lr"])
            return result

        optimizer.step = step

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        (record,) = [r for r in helpers.records(runner) if r.iter == runner.iter]
        self.factors[runner.iter] = record.get("lr_factor")
        history = runner.message_hub.get_scalar("train/lr")
        self.logged[runner.iter] = history.current()


class Saves(Hook):
    """As CheckpointHook does: behind all others, after an iteration."""

    priority = "LOWEST"

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter == 40:
            runner.save_checkpoint(runner.work_dir, "last.pth", by_epoch=False)


def run(tmp_path, writer, at=(AT, AT + 1, AT + 2), iters=ITERS, ours=None, **more):
    used = Used()
    others = more.pop("more_hooks", [])
    hooks = [SpoilInputs(at), writer, used, ours or suite(), *others]
    runner = build(tmp_path, hooks, iters=iters, log_level="WARNING", **more)
    runner.train()
    return runner, used


@pytest.mark.parametrize("kind", [Schedule, Late, After, Relative])
def test_the_cut_lasts(tmp_path, kind):
    runner, used = run(tmp_path, kind())
    (line,) = ledger(runner, "rollback")
    assert line["lr_factor"] == pytest.approx(0.1)
    for i, rate in list(used.rates.items())[kind is After :]:
        factor = 0.1 if i > line["iter"] else 1.0
        assert used.factors[i] == pytest.approx(factor)
        assert rate == pytest.approx(0.1 * kind.share(i) * factor), i
    told = helpers.log(runner).count(TOLD)
    assert told == (kind is not Relative)


def test_the_logs_have_what_was_used(tmp_path):
    _, used = run(tmp_path, Schedule())
    for i in range(AT + 4, ITERS):
        assert used.logged[i] == pytest.approx(used.rates[i])


@pytest.mark.parametrize("kind", [Schedule, Late])
def test_the_warm_up_after_a_rollback_is_that_of_the_held_rate(tmp_path, kind):
    runner, used = run(tmp_path, kind(), ours=suite(warmup_iters=8))
    (line,) = ledger(runner, "rollback")
    for i, rate in used.rates.items():
        assert used.factors[i] <= (0.1 if i > line["iter"] else 1.0) + 1e-12
        assert rate == pytest.approx(0.1 * kind.share(i) * used.factors[i]), i


@pytest.mark.parametrize("kind", [Schedule, Late, After])
def test_a_second_cut_and_a_recovery_are_held_as_well(tmp_path, kind):
    bad = [15, 16, 17, 25, 26, 27]
    ours = suite(recover_after=10, keep_lr_after=None)
    runner, used = run(tmp_path, kind(), at=bad, ours=ours)
    assert [line["iter"] for line in ledger(runner, "rollback")] == [17, 27]
    assert recovered(runner)
    assert min(used.factors.values()) == pytest.approx(0.01)
    assert used.factors[ITERS - 1] == pytest.approx(0.02)
    for i, rate in list(used.rates.items())[kind is After :]:
        # What is decided after an iteration is for the next one.
        factor = used.factors[i] if i not in recovered(runner) else used.factors[i] / 2
        assert rate == pytest.approx(0.1 * kind.share(i) * factor), i


def recovered(runner):
    return [line["iter"] for line in ledger(runner, "recover")]


@pytest.mark.parametrize("saver", ["ours", "CheckpointHook"])
@pytest.mark.parametrize("from_config", [False, True])
@pytest.mark.parametrize("kind", [Schedule, Late, After])
def test_a_resume_does_not_jump(tmp_path, kind, from_config, saver):
    """Whether the hook begins with the checkpoint's initial_lr, or with its own."""
    work_dir = tmp_path / "run"
    writer = kind(from_config)
    saves = Saves() if saver == "CheckpointHook" else Hook()
    more = dict(iters=45, work_dir=work_dir, more_hooks=[saves])
    first, _ = run(tmp_path, writer, **more)
    assert ledger(first, "rollback")
    start = dict(work_dir=work_dir, resume=True)
    if saver == "CheckpointHook":
        start["load_from"] = str(work_dir / "last.pth")
    runner, used = run(tmp_path, kind(from_config), at=(), **start)
    begin = min(used.rates)
    assert AT + 3 < begin < 46
    for i, rate in used.rates.items():
        assert used.factors[i] == pytest.approx(0.1)
        assert rate == pytest.approx(0.01 * kind.share(i)), i


@pytest.mark.parametrize("kind", [Schedule, Late, After, Relative])
def test_a_healthy_run_has_what_is_written(tmp_path, kind):
    runner, used = run(tmp_path, kind(), at=())
    assert TOLD not in helpers.log(runner)
    for i, rate in list(used.rates.items())[kind is After :]:
        assert rate == pytest.approx(0.1 * kind.share(i)), i


@pytest.mark.parametrize(
    "scheduler",
    [
        dict(type="CosineAnnealingLR", by_epoch=False, end=ITERS, eta_min=0.001),
        dict(type="MultiStepLR", by_epoch=False, milestones=[25, 30]),
        dict(type="OneCycleLR", by_epoch=False, eta_max=0.2, total_steps=ITERS),
        dict(type="ConstantLR", by_epoch=False, factor=0.5, end=24),
    ],
    ids=lambda s: s["type"],
)
def test_schedulers_of_the_run_are_not_taken_for_others(tmp_path, scheduler):
    rates = []
    for at in ((), (AT, AT + 1, AT + 2)):
        used = Used()
        hooks = [SpoilInputs(at), used, suite()]
        more = dict(param_scheduler=[dict(scheduler)], log_level="WARNING")
        runner = build(tmp_path, hooks, iters=ITERS, **more)
        runner.train()
        assert TOLD not in helpers.log(runner)
        rates.append(used.rates)
    for i in range(AT + 3, ITERS):
        assert rates[1][i] == pytest.approx(0.1 * rates[0][i])


# --- the rule, without a run ----------------------------------------------------------


def test_nothing_is_looked_at_before_a_change():
    held, groups = HeldRate(), [dict(lr=1.0)]
    assert held.hold(groups, []) == (False, None)
    groups[0]["lr"] = 5.0
    assert held.hold(groups, []) == (False, None)
    assert groups == [dict(lr=5.0)]


def test_one_group_of_several_is_written():
    held, groups = HeldRate(), [dict(lr=0.1), dict(lr=0.02)]
    held.changed(groups, [], 0.1)
    groups[0]["lr"] = 0.99
    assert held.hold(groups, []) == (True, 0.1)
    assert [g["lr"] for g in groups] == pytest.approx([0.099, 0.02])
    # The very number that had been left: somebody has written it all the same.
    groups[0]["lr"] = float("0.0990")
    assert held.hold(groups, []) == (True, None)
    assert groups[0]["lr"] == pytest.approx(0.0099)


def test_zero_says_nothing_about_who_knows():
    held, groups = HeldRate(), [dict(lr=0.1)]
    held.changed(groups, [], 0.1)
    groups[0]["lr"] = 0.0
    assert held.hold(groups, []) == (False, None)
    assert held.active


def test_tensors_are_passed_over():
    held, groups = HeldRate(), [dict(lr=torch.tensor(0.1)), dict(lr=0.1)]
    held.changed(groups, [], 0.1)
    groups[0]["lr"] = torch.tensor(1.0)
    assert held.hold(groups, []) == (False, None)
    assert float(groups[0]["lr"]) == 1.0


def test_a_group_that_is_added_is_left_as_it_is():
    held, groups = HeldRate(), [dict(lr=0.1)]
    held.changed(groups, [], 0.1)
    groups.insert(0, dict(lr=3.0))
    assert held.hold(groups, []) == (False, None)
    assert [g["lr"] for g in groups] == [3.0, 0.1]


@pytest.mark.parametrize("warmup", [0, 10])
def test_a_hook_that_halves_the_rate_within_a_rewarmup(tmp_path, warmup):
    """Not of what the warm-up had made of it, or it would stay a thousandth."""
    hooks = [
        dict(
            type="amp_hooks.RollbackHook",
            interval=5,
            probation=0,
            warmup_iters=warmup,
            keep_lr_after=None,
        ),
        dict(type="amp_hooks.StepGuardHook"),
        SpoilInputs(at=[20, 21, 22]),
        RaiseLR(0.5, at=25),
    ]
    runner = build(tmp_path, hooks, iters=50)
    runner.train()
    assert len(ledger(runner, "rollback")) == 1
    lr = runner.optim_wrapper.param_groups[0]["lr"]
    assert lr == pytest.approx(0.1 * 0.1 * 0.5)
