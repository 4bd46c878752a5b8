"""Averages of weights: at any priority, of any hook, after the iteration was judged."""

import copy

import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import EMAHook, Hook

from amp_hooks.engine.averaging import averaging_hooks, keepers_of_a_copy
from tests import helpers
from tests.small import Seen, Small, SpoilInputs, build, ledger, same, samples, state

PRIORITIES = ["HIGHEST", "VERY_HIGH", "HIGH", "ABOVE_NORMAL", 49, "NORMAL", "LOW"]
SUITE = dict(type="amp_hooks.StabilityHook", rollback=dict(interval=10, probation=2))


def ema(priority, **more):
    return dict(type="EMAHook", momentum=0.1, priority=priority, **more)


def average(runner):
    (hook,) = [h for h in runner.hooks if isinstance(h, EMAHook)]
    return {n: t.clone() for n, t in hook.ema_model.state_dict().items()}


class Kept(Hook):
    """Copies of the average before each iteration."""

    priority = 2

    def __init__(self):
        self.averages = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.averages.append(average(runner))


class Predicts(Small):
    def forward(self, x, y, mode="loss"):
        out = super().forward(x, y, mode)
        return out if mode == "loss" else [dict(logits=row) for row in out]


class Total(BaseMetric):
    default_prefix = "sum"

    def process(self, data_batch, data_samples):
        self.results += [float(s["logits"].double().sum()) for s in data_samples]

    def compute_metrics(self, results):
        return dict(total=sum(results))


def evaluated():
    loader = dict(
        dataset=samples(32),
        batch_size=8,
        num_workers=0,
        collate_fn=dict(type="default_collate"),
        sampler=dict(type="DefaultSampler", shuffle=False),
    )
    return dict(val_dataloader=loader, val_evaluator=[Total()], val_cfg=dict())


def totals(runner):
    return runner.message_hub.get_scalar("val/sum/total").data[0].tolist()


@pytest.mark.parametrize("dtype", [None, "float16"])
@pytest.mark.parametrize("priority", PRIORITIES)
def test_a_healthy_average_is_bit_for_bit_that_of_stock(tmp_path, priority, dtype):
    """With evaluations by it on the way."""
    runs = []
    for hooks in ([], [SUITE]):
        runner = build(
            tmp_path,
            [ema(priority), *hooks],
            model=Predicts,
            dtype=dtype,
            epochs=2,
            **evaluated(),
        )
        runner.train()
        runs.append(runner)
    assert same(average(runs[0]), average(runs[1]))
    assert same(state(runs[0]), state(runs[1]))
    assert totals(runs[0]) == totals(runs[1])
    assert len(totals(runs[0])) == 2


class Saver(Hook):
    priority = "LOWEST"

    def after_train_epoch(self, runner):
        runner.save_checkpoint(runner.work_dir, "saved.pth", by_epoch=True)


@pytest.mark.parametrize("priority", ["HIGH", "ABOVE_NORMAL", "NORMAL"])
def test_a_resumed_average_goes_on_as_that_of_stock(tmp_path, priority):
    runs = []
    for name, hooks in (("stock", []), ("ours", [SUITE])):
        hooks, path = [Saver(), ema(priority), *hooks], tmp_path / name
        build(tmp_path, hooks, epochs=1, work_dir=path).train()
        start = dict(load_from=str(path / "saved.pth"), resume=True)
        runner = build(tmp_path, hooks, epochs=2, work_dir=tmp_path / "next", **start)
        runner.train()
        assert runner.iter == 64
        runs.append(runner)
    assert same(average(runs[0]), average(runs[1]))
    assert same(state(runs[0]), state(runs[1]))


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("priority", PRIORITIES)
def test_a_bad_iteration_leaves_no_trace_in_the_average(tmp_path, priority, accumulate):
    kept = Kept()
    runner = build(
        tmp_path,
        [SpoilInputs([11]), kept, ema(priority, update_buffers=True), SUITE],
        iters=20,
        wrapper=dict(accumulative_counts=accumulate),
    )
    runner.train()
    assert [line["iter"] for line in ledger(runner, "veto")] == [11]
    before, after = kept.averages[12 - accumulate], kept.averages[12]
    assert same(before, after)
    assert all(t.isfinite().all() for t in average(runner).values())
    assert not same(after, average(runner))


@pytest.mark.parametrize("priority", ["HIGH", "NORMAL"])
def test_a_rollback_takes_the_average_back(tmp_path, priority):
    """Nothing is averaged in the iteration that goes back."""
    kept = Kept()
    rollback = dict(type="amp_hooks.RollbackHook", interval=5, probation=2)
    spoil = SpoilInputs([13])
    runner = build(tmp_path, [spoil, kept, ema(priority), rollback], iters=20)
    runner.train()
    (line,) = ledger(runner, "rollback")
    assert line["iter"] == 13
    assert same(kept.averages[14], kept.averages[line["target_iter"]])


def test_the_verdict_comes_once_where_it_comes_early(tmp_path):
    """Counters of the hooks that were called ahead of their turn."""
    spoil = SpoilInputs([11, 12])
    runner = build(tmp_path, [spoil, ema("HIGHEST"), SUITE], iters=20)
    runner.train()
    assert [line["iter"] for line in ledger(runner, "veto")] == [11, 12]
    assert helpers.hook_of(runner, "StepGuardHook").vetoes == 2
    assert len(helpers.records(runner)) == 20


def test_the_hooks_are_given_back(tmp_path):
    runner = build(tmp_path, [ema("HIGH"), SUITE], iters=2)
    runner.train()
    (hook,) = averaging_hooks(runner)
    assert "after_train_iter" not in vars(hook)


# --- averages of others ---------------------------------------------------------------


class Averages(Hook):
    """An average of one's own, as a module, as tensors, in an object; made early, late.

    Buffers are averaged, as many do.
    """

    priority = 5

    def __init__(self, form, begin=0):
        self.form, self.begin, self.kept = form, begin, None
        self.before = {}

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if self.kept is not None:
            self.before[runner.iter] = {k: v.clone() for k, v in self.flat().items()}

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter < self.begin:
            return
        if self.kept is None:
            whole = copy.deepcopy(runner.model)
            tensors = {n: t.clone() for n, t in runner.model.state_dict().items()}
            self.kept = dict(
                module=whole, tensors=tensors, object=Box(list(tensors.values()))
            )[self.form]
        with torch.no_grad():
            live = runner.model.state_dict()
            for (_, mean), value in zip(self.flat().items(), live.values()):
                if mean.is_floating_point():
                    mean.lerp_(value, 0.1)

    def flat(self):
        if self.form == "module":
            return self.kept.state_dict()
        if self.form == "tensors":
            return self.kept
        return dict(enumerate(self.kept.shadow))


class Box:
    def __init__(self, shadow):
        self.shadow = shadow


@pytest.mark.parametrize("begin", [0, 1])
@pytest.mark.parametrize("form", ["module", "tensors", "object"])
def test_an_average_of_ones_own_is_told_and_kept_clean(tmp_path, form, begin):
    hook = Averages(form, begin)
    hooks = [SpoilInputs([11]), hook, SUITE]
    runner = build(tmp_path, hooks, iters=20, log_level="WARNING")
    runner.train()
    log = helpers.log(runner)
    assert log.count("Averages keeps a copy of the model in its attribute 'kept'") == 1
    assert sorted(hook.before) == list(range(begin + 1, 20))  # none is left out
    assert all(t.isfinite().all() for t in hook.flat().values())


def test_an_average_of_ones_own_is_not_changed_by_being_watched(tmp_path):
    kept = []
    for hooks in ([], [SUITE]):
        hook = Averages("module")
        build(tmp_path, [hook, *hooks], iters=20).train()
        kept.append(hook.flat())
    assert same(*kept)


class Looks(Seen):
    """Holds the model, its optimizer and the run, and numbers: no average."""

    def before_train(self, runner):
        self.runner, self.model, self.wrapper = runner, runner.model, None
        self.optimizer = runner.optim_wrapper.optimizer
        self.now = runner.model.state_dict()
        self.mean = torch.zeros(8, 16)


def test_who_only_looks_at_the_run_is_no_average(tmp_path):
    runner = build(tmp_path, [Looks(), SUITE], iters=5, log_level="WARNING")
    runner.train()
    assert not keepers_of_a_copy(runner)
    assert "keeps a copy" not in helpers.log(runner)
