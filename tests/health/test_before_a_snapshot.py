"""Ruin, or new data, before the first snapshot of weights that know something."""

from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from torch import nn

from amp_hooks.health.metric import Metrics
from amp_hooks.health.run_health import RunHealth
from tests import helpers, processes, small

SUITE = dict(type="amp_hooks.StabilityHook", preflight=None)
ADAM = dict(wrapper=dict(optimizer=dict(type="Adam", lr=1e-3)))
LENGTHS = [dict(iters=320), dict(epochs=10)]
AT = 200
UNTRAINED = 1.39  # log of four classes


class OtherLabels(Hook):
    """What has been learned is wrong, with confidence."""

    priority = 2

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter >= AT:
            data_batch["y"] = (data_batch["y"] + 1) % 4


class NewHead(Hook):
    priority = 2

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == AT:
            torch.manual_seed(1)
            nn.init.normal_(runner.model.bbox_head.fc_cls.weight, std=0.5)


def train(tmp_path, hooks, model=small.Wide, **more):
    seen = small.Seen()
    runner = small.build(tmp_path, [*hooks, seen], model, **dict(ADAM, **more))
    runner.train()
    return runner, seen.losses


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(
    ("model", "hook"),
    [(small.Wide, OtherLabels), (small.Wide, NewHead), (small.OwnStep, OtherLabels)],
)
def test_new_data_are_learned(tmp_path, model, hook, length):
    """Nothing is thrown away for them, and nothing is changed."""
    stock, losses = train(tmp_path, [hook()], model, **length)
    assert max(losses[AT : AT + 20]) > UNTRAINED > 1.2 * losses[-1]
    runner, _ = train(tmp_path, [SUITE, hook()], model, **length)
    assert small.ledger(runner, "diverged", "rollback", "abort") == []
    assert small.same(small.state(stock), small.state(runner))


@pytest.mark.parametrize("length", [dict(iters=448), dict(epochs=14)])
@pytest.mark.parametrize(("factor", "at"), [(300, 200), (100, 120)])
def test_a_ruin_that_costs_no_more_than_an_untrained_model(
    tmp_path, factor, at, length
):
    """Early the loss does not even leave its range: then the weights are compared."""
    _, losses = train(tmp_path, [small.RaiseLR(factor, at)], **length)
    assert 0.8 * UNTRAINED < sum(losses[-40:]) / 40 < 2 * UNTRAINED
    runner, losses = train(tmp_path, [SUITE, small.RaiseLR(factor, at)], **length)
    (rollback,) = small.ledger(runner, "rollback")
    assert (rollback["target_iter"], rollback["verdict"]) == (0, "DIVERGED")
    assert at < rollback["iter"] <= at + 40
    assert f"the learning rate rose x{factor}" in rollback["why"]
    assert runner.optim_wrapper.param_groups[0]["lr"] == pytest.approx(1e-3)
    assert sum(losses[-40:]) / 40 < 0.6 * UNTRAINED
    assert small.ledger(runner, "well", "abort") == []


@pytest.mark.parametrize("length", LENGTHS)
def test_a_learning_rate_that_jumps_and_does_good(tmp_path, length):
    """As the constant warm-up of a schedule ends."""
    small_rate = dict(wrapper=dict(optimizer=dict(type="Adam", lr=1e-5)))
    hook = small.RaiseLR(100, 150)
    stock, losses = train(tmp_path, [hook], **small_rate, **length)
    assert losses[149] > 1.0 > losses[-1]
    runner, _ = train(tmp_path, [SUITE, hook], **small_rate, **length)
    assert small.ledger(runner, "diverged", "rollback", "watch") == []
    assert small.same(small.state(stock), small.state(runner))


def test_what_is_saved_while_it_learns_counts(tmp_path):
    """Slowly, after the learning rate has decayed: it is ill for hundreds of them."""
    hooks = [small.RaiseLR(0.15, AT - 10), OtherLabels()]
    runner, losses = train(
        tmp_path, [SUITE, *hooks], iters=520, checkpoint=dict(interval=100)
    )
    assert losses[-1] > UNTRAINED / 2
    assert small.ledger(runner, "diverged", "rollback", "well") == []
    named = (Path(runner.work_dir) / "last_checkpoint").read_text()
    assert named.endswith("iter_500.pth")


def test_two_ranks_look_together(tmp_path):
    """Whose losses differ; neither waits for the other where that does not come."""
    program = helpers.ROOT / "tests/health/two_ranks.py"
    done = processes.two_ranks(
        program, tmp_path, 100, "rise", timeout=300, cwd=helpers.ROOT
    )
    lines = [x.split(" | ") for x in done.stdout.splitlines() if x.startswith("rank")]
    assert [went for _, went, *_ in lines] == ["[(160, 0)]"] * 2
    assert lines[0][3] == lines[1][3]  # of the weights


def test_who_begins_anew_is_judged_by_the_start():
    """Otherwise a run that has to learn again would be ill until it has."""
    health, iteration = RunHealth(), 0

    def feed(losses):
        nonlocal iteration
        for loss in losses:
            health.add(iteration, loss, {}, lr=0.1)
            iteration += 1

    feed([1.4] * 20 + [1.4 - 0.01 * i for i in range(130)] + [0.1] * 100)
    feed([50.0] * 20)
    assert health.condition.name == "ILL"
    health.rolled_back(iteration, 0, then=health.start, diverged=True)
    feed([1.4] * 300)
    assert health.condition.name == "HEALTHY"
    assert health.level == pytest.approx(1.4)
    feed([50.0] * 20)
    assert health.condition.name == "ILL"


@pytest.mark.parametrize(("target", "fallen"), [(100, 1), (0, 0)])
def test_and_so_is_its_metric(target, fallen):
    """By no best that weights reached which were given up."""
    metrics = Metrics()
    metrics.add(100, "bbox_mAP", 0.4, True)
    state, metrics = metrics.state(), Metrics()
    metrics.load_state(state)
    metrics.went_back(False, target)
    metrics.add(200, "bbox_mAP", 0.001, True)
    assert metrics.fallen == fallen
