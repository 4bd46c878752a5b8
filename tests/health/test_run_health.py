"""Healthy runs are never ill; ruined ones are, in time and with their onset."""

import copy
import json
import math
from pathlib import Path

import pytest

from amp_hooks.engine.condition import State
from amp_hooks.health.run_health import RunHealth

from . import curves
from .curves import follow

TRACES = Path(__file__).parent / "traces"
NAN = float("nan")


def trace(name):
    terms = json.loads((TRACES / f"{name}.json").read_text())["terms"]
    for i, loss in enumerate(terms["loss"]):
        values = {k: NAN if v[i] is None else v[i] for k, v in terms.items()}
        del values["loss"]
        yield NAN if loss is None else loss, values


def follow_trace(name, schedule):
    def steps():
        for i, (loss, terms) in enumerate(trace(name)):
            yield curves.Step(loss, terms, schedule(i))

    return follow(RunHealth(), steps())


def unknown(i):
    return None


def constant(i):
    return 1e-3


def warm_up(i):
    return 1e-3 * min(1.0, 0.001 + i / 20)


@pytest.mark.parametrize("schedule", [unknown, constant, warm_up])
@pytest.mark.parametrize("detector", ["rtmdet", "faster_rcnn"])
@pytest.mark.parametrize("run", ["clean", "scratch"])
def test_healthy_detectors(detector, run, schedule):
    watched, ill = follow_trace(f"{detector}.{run}", schedule)
    assert ill is None
    assert watched <= 5


@pytest.mark.parametrize(
    ("name", "schedule", "within"),
    [
        ("rtmdet.hot_lr", unknown, 62),
        ("rtmdet.hot_lr", warm_up, 60),
        ("rtmdet.no_warmup", unknown, 75),
        ("rtmdet.no_warmup", constant, 75),
        ("faster_rcnn.hot_lr", unknown, 40),
        ("faster_rcnn.hot_lr", warm_up, 40),
        # In FP32: dead by iteration 20, with a loss as at its start.
        ("faster_rcnn.no_warmup", unknown, 12),
        ("faster_rcnn.no_warmup", constant, 12),
    ],
)
def test_a_start_that_was_too_hot(name, schedule, within):
    _, ill = follow_trace(name, schedule)
    assert ill is not None
    at, since, why = ill
    assert at <= within
    assert since < 10
    assert "at the start of training" in why or why.startswith("loss ")


@pytest.mark.parametrize("sigma", [0.05, 0.2, 0.35])
@pytest.mark.parametrize("shape", curves.HEALTHY, ids=lambda f: f.__name__)
def test_healthy_shapes(shape, sigma):
    for seed, length in ((1, 300), (2, 300), (3, 1500)):
        watched, ill = follow(RunHealth(), shape(seed, length, sigma))
        assert ill is None, (seed, ill)
        assert watched <= 0.1 * length, seed


# Of x2 while the loss is falling still nothing is to be seen.
RUINS = [(10000, 10), (1000, 10), (100, 10), (10, 20), (3, 60)]


@pytest.mark.parametrize(
    ("factor", "within", "at"),
    [(*ruin, at) for at in (60, 1500) for ruin in RUINS] + [(2, 250, 1500)],
)
def test_ruin(factor, within, at):
    for seed in range(3):
        _, ill = follow(RunHealth(), curves.ruined(seed, 2400, at, factor, 0.1))
        assert ill is not None
        assert at < ill[0] <= at + within
        assert abs(ill[1] - at) <= 3
        assert f"since iteration {ill[1]}; the learning rate rose x10" in ill[2]


def test_a_loss_at_chance_level_without_gradient():
    _, ill = follow(RunHealth(), curves.chance(0, 400, 200, 0.3))
    assert ill is not None
    assert ill[0] <= 220
    assert 197 <= ill[1] <= 203
    assert "hardly any gradient is left" in ill[2]


def test_small_gradients_of_a_converged_run():
    def steps():
        for i in range(400):
            yield curves.Step(0.5, {}, 0.1, 1.0 if i < 200 else 1e-6)

    assert follow(RunHealth(), steps()) == (0, None)


def test_one_batch_is_data():
    for size in (50.0, 19426.0, 3e6, 1e30):
        health = RunHealth()
        for i in range(300):
            health.add(i, size if i % 40 == 35 else 1.0, {})
            assert health.condition is State.HEALTHY


def trained(length=200, loss=1.0):
    health = RunHealth()
    for i in range(length):
        health.add(i, loss * (1 + 0.05 * math.sin(i * 2.1)), dict(a=loss))
    return health


def go_on(health, loss, length, first=200, **more):
    for i in range(first, first + length):
        health.add(i, loss * (1 + 0.05 * math.sin(i * 2.1)), dict(a=loss), **more)
    return health


def test_illness_does_not_become_normal():
    health = trained()
    go_on(health, 30.0, 2000)
    assert health.condition is State.ILL
    assert health.since == 200
    assert health.level == pytest.approx(1.0, rel=0.05)
    assert health.ratio == pytest.approx(30.0, rel=0.1)
    low, high = health.band
    assert 0.4 < low < 1 < high < 2


def test_well_again_by_itself():
    health = go_on(trained(), 30.0, 30)
    assert health.condition is State.ILL
    go_on(health, 1.0, 40, 230)
    assert health.condition is State.ILL
    go_on(health, 1.0, 20, 270)
    assert health.condition is State.HEALTHY
    assert (health.why, health.since) == ("", None)


def test_nonfinite_losses_change_nothing():
    health = go_on(trained(), 30.0, 3)
    before = copy.deepcopy(health.state())
    for i, loss in enumerate((NAN, math.inf, -math.inf, None)):
        health.add(203 + i, loss, dict(a=NAN))
    assert health.state() == before


def test_going_back_that_helps():
    health = go_on(trained(), 30.0, 30)
    health.rolled_back(230, 190)
    assert health.condition is State.WATCHED
    go_on(health, 1.0, 30, 230)
    assert health.condition is State.HEALTHY
    go_on(health, 30.0, 10, 260)
    assert health.condition is State.ILL


def test_a_new_normal():
    health = go_on(trained(), 2.5, 200)
    assert health.condition is State.ILL
    health.rolled_back(400, 190)
    worst = max(go_on(health, 2.5, 1, 400 + i).condition for i in range(1000))
    assert worst is State.WATCHED
    assert health.condition is State.HEALTHY
    assert health.level == pytest.approx(2.5, rel=0.1)


def test_too_high_to_be_a_new_normal():
    health = go_on(trained(), 8.0, 200)
    for _ in range(4):
        health.rolled_back(400, 190)
        assert go_on(health, 8.0, 100, 400).condition is State.ILL


def test_going_back_that_does_not_last():
    health = go_on(trained(), 2.5, 200)
    health.rolled_back(400, 190)
    go_on(health, 1.0, 15, 400)
    go_on(health, 2.5, 150, 415)
    assert health.condition is State.ILL


def test_clamped_logits():
    health = go_on(trained(), 1.6, 150, clamped=0.8)
    assert health.condition is State.ILL
    assert "80% of the logits are clamped" in health.why
    health = go_on(trained(), 1.0, 300, clamped=0.8)
    assert health.condition is State.HEALTHY


def test_a_term_alone():
    health = RunHealth()
    for i in range(400):
        box = 50.0 if i >= 300 else 0.1
        health.add(i, 100.0 + box, dict(loss_cls=100.0, loss_box=box))
    assert health.condition is State.ILL  # it is in range, its term is not
    assert health.why == "loss_box 50 for 0.1 since iteration 300"
    health.rolled_back(400, 290)
    for i in range(400, 500):
        health.add(i, 150.0, dict(loss_cls=100.0, loss_box=50.0))
    assert health.condition is State.HEALTHY  # a weight was changed, say


def test_the_term_that_rose_is_named():
    health = RunHealth()
    for i in range(330):
        box = 30.0 if i >= 300 else 0.5
        health.add(i, 1 + box, dict(loss_cls=1.0, loss_box=box))
    assert health.why.endswith("; loss_box rose most (x59.9)")


def test_metric():
    health = trained()
    for i, value in enumerate((0.0, 0.01, 0.3, 0.4)):
        health.metric(100 * i, "coco/bbox_mAP", value)
    assert health.condition is State.HEALTHY
    health.metric(400, "coco/bbox_mAP", 0.02)
    assert health.condition is State.WATCHED
    go_on(health, 1.0, 100, 400)
    assert health.condition is State.WATCHED
    health.metric(500, "coco/bbox_mAP", 0.0)
    assert health.condition is State.ILL
    assert health.why == "coco/bbox_mAP is 0, its best was 0.4"
    assert health.since == 301
    health.metric(600, "coco/bbox_mAP", 0.35)
    assert health.condition is State.HEALTHY


def test_metric_that_is_better_small():
    health = trained()
    for i, value in enumerate((50.0, 10.0, 1.0, 0.1)):
        health.metric(100 * i, "perplexity", value, best_is_larger=False)
    assert health.condition is State.HEALTHY


@pytest.mark.parametrize("at", [3, 150, 310, 345])
def test_resume(at):
    steps = list(curves.ruined(0, 400, 300, 3.0, 0.2))
    for step in steps:
        step.terms = dict(a=step.loss / 2, b=step.loss / 2)
    whole, first = RunHealth(), RunHealth()
    follow(whole, steps)
    follow(first, steps[:at])
    state = json.loads(json.dumps(first.state()))
    second = RunHealth()
    second.load_state(state)
    assert second.state() == first.state()
    assert (second.level, second.band) == (first.level, first.band)
    follow(second, steps[at:], at)
    assert second.state() == whole.state()


def test_far_out_at_once_after_going_back_is_not_the_weights():
    """Twelve bad batches in a row cost one rollback, not one every few iterations."""
    health = go_on(trained(), 1000.0, 8)
    assert health.condition is State.ILL
    health.rolled_back(208, 190)
    go_on(health, 1000.0, 12, 209)
    assert health.condition is State.WATCHED
    go_on(health, 1.0, 40, 221)
    assert health.condition is State.HEALTHY


def test_the_onset_after_going_back_is_not_before_it():
    health = go_on(trained(), 1000.0, 8)
    health.rolled_back(208, 190)
    go_on(health, 1000.0, 100, 209)
    assert health.condition is State.ILL
    assert health.since >= 209


def test_losses_that_are_zero_at_first_are_no_level():
    health = RunHealth()
    for i in range(30):
        health.add(i, 0.0, {})
    for i in range(30, 400):
        health.add(i, 1.3 * (1 + 0.1 * math.sin(i)), {})
        assert health.condition is not State.ILL


def test_names_without_end_do_not_slow_it_down():
    health = RunHealth()
    for i in range(1000):
        health.add(i, 1.0, {f"loss_{i}": 1.0})
    assert len(health.state()["symptoms"]["terms"]) <= 110


def test_the_onset_of_an_early_ruin_is_not_the_first_iteration():
    """The noise of the start is not known yet, and where the loss left it is."""
    health = RunHealth()
    for i in range(30):
        loss = 2.6 - 0.06 * i if i < 11 else 60.0
        health.add(i, loss * (1 + 0.02 * math.sin(i)), {}, lr=0.01)
        if health.condition is State.ILL:
            break
    assert health.condition is State.ILL
    assert 10 <= health.since <= 12
