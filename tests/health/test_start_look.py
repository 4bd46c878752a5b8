"""The weights of now and those of the start, on the same batch."""

import math

import pytest
import torch

from amp_hooks.engine.condition import Costs, State
from amp_hooks.health.start_look import LOOKS, StartLook
from tests import small

SUITE = dict(type="amp_hooks.StabilityHook", preflight=None)


GOOD, BAD = Costs(1.4, 1.0, 0), Costs(2.1, 1.0, 0)


def looks(*costs):
    look = StartLook()
    for each in costs:
        look.add(each)
    return look


@pytest.mark.parametrize(
    ("costs", "ruined"),
    [
        ([GOOD] * 4, False),  # as healthy ones rise for a while
        ([BAD] * 4, True),
        ([BAD, BAD, GOOD, GOOD], True),  # 1.75
        ([BAD, GOOD, GOOD, GOOD], False),
        ([BAD, BAD, BAD, None], False),  # not comparable any more
        (
            [BAD, BAD, BAD, BAD._replace(taken_at=25)],
            False,
        ),  # that of the start is gone
        ([BAD, BAD, BAD, BAD._replace(compared=False)], False),
        ([Costs(0.1, 7.0, 0)] * 4, False),
        ([BAD, BAD, BAD, Costs(1.0, 0.0, 0)], True),  # a batch without objects
        ([BAD, *[Costs(1.0, 0.0, 0)] * 3], False),
        ([Costs(-1.0, -3.0, 0)] * 4, False),  # a likelihood
        ([BAD, BAD, Costs(math.nan, 1.0, 0), Costs(1.0, math.nan, 0)], True),
    ],
)
def test_how_much_worse_is_ruined(costs, ruined):
    found = looks(*costs).ruined
    assert (found is not None) is ruined
    if found is not None:
        assert (found.state, found.since) == (State.ILL, 0)
    if costs == [BAD] * 4:
        assert found.loss_ratio == pytest.approx(2.1)
        assert found.why == (
            "a batch costs 2.1, and 1 with the weights that the run began with"
        )


def test_losses_above_the_start_wait_for_the_looks():
    look = looks(BAD, BAD)
    assert look.waits(LOOKS[1], 2.5)
    assert not look.waits(LOOKS[1], 4.5)  # no fine-tune
    assert not look.waits(LOOKS[1], None)  # it is something else
    assert not look.waits(LOOKS[-1], 2.5)
    assert not looks(BAD, None).waits(LOOKS[1], 2.5)


def test_looks_that_tell_otherwise_clear_it():
    assert looks(*[GOOD] * 4).clears(LOOKS[-1], 2.5)
    assert not looks(*[GOOD] * 4).clears(LOOKS[-2], 2.5)
    assert not looks(*[GOOD] * 4).clears(LOOKS[-1], None)
    assert not looks(*[BAD] * 4).clears(LOOKS[-1], 2.5)
    assert not looks(GOOD, None).clears(LOOKS[-1], 2.5)


def test_they_survive_a_resume_and_not_a_rollback():
    first, second = looks(BAD, BAD, GOOD), StartLook()
    second.load_state(first.state())
    second.add(GOOD)
    assert second.ruined is not None
    second.went_back(18)
    assert not second.due(LOOKS[0])
    assert second.due(18 + LOOKS[0])
    second.add(GOOD)
    second.add(GOOD)
    assert second.ruined is None
    assert not second.last(LOOKS[-1])
    assert second.clears(18 + LOOKS[-1], 2.5)


class Damage(small.Hook):
    """After a first batch that costs x8 the classifier is wrong, and finite."""

    def __init__(self, size):
        self.size = size

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        runner.model.factor = 8.0 if runner.iter == 0 else 1.0
        if runner.iter == 1:
            weight = runner.model.bbox_head.fc_cls.weight.data
            noise = torch.randn(
                weight.shape, generator=torch.Generator().manual_seed(0)
            )
            weight.add_(self.size * noise)


def train(tmp_path, trained, size, hooks=(SUITE,), **length):
    model = small.Scaled()
    model.load_state_dict(trained)
    slowly = dict(wrapper=dict(optimizer=dict(type="SGD", lr=1e-5)))
    hooks = [*hooks, Damage(size)]
    runner = small.build(tmp_path, hooks, model, **slowly, **length)
    runner.train()
    return runner


@pytest.mark.parametrize("length", [dict(iters=80), dict(epochs=3)])
def test_a_start_that_is_ruined_while_its_losses_tell_nothing(
    tmp_path, trained, length
):
    runner = train(tmp_path, trained, 2.0, **length)
    (diverged,) = small.ledger(runner, "diverged")
    (rollback,) = small.ledger(runner, "rollback")
    assert (diverged["iter"], diverged["since"]) == (LOOKS[-1], 0)
    assert "with the weights that the run began with" in diverged["why"]
    assert (rollback["iter"], rollback["target_iter"]) == (LOOKS[-1], 0)
    assert rollback["lr_factor"] == 0.1
    now = small.state(runner)["bbox_head.fc_cls.weight"]
    assert torch.allclose(now, trained["bbox_head.fc_cls.weight"], atol=1e-2)


class TwiceDamaged(small.Hook):
    """Ruined before the first look, and for one iteration worse at the second."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        weight = runner.model.bbox_head.fc_cls.weight.data
        generator = torch.Generator().manual_seed(0)
        if runner.iter == LOOKS[0] - 5:
            weight.add_(20 * torch.randn(weight.shape, generator=generator))
        if runner.iter == LOOKS[1]:
            self.kept = weight.clone()
            weight.add_(torch.randn(weight.shape, generator=generator))
        if runner.iter == LOOKS[1] + 1:
            weight.copy_(self.kept)


def test_looks_before_a_rollback_are_of_other_weights(tmp_path, trained):
    model = small.Scaled()
    model.load_state_dict(trained)
    slowly = dict(wrapper=dict(optimizer=dict(type="SGD", lr=1e-5)))
    hooks = [SUITE, TwiceDamaged()]
    runner = small.build(tmp_path, hooks, model, iters=100, **slowly)
    runner.train()
    (rollback,) = small.ledger(runner, "rollback")
    assert LOOKS[0] <= rollback["iter"] < LOOKS[1]


def test_one_that_is_a_little_worse_for_a_while_is_left_alone(tmp_path, trained):
    stock = train(tmp_path, trained, 0.1, (), iters=100)
    runner = train(tmp_path, trained, 0.1, iters=100)
    assert small.ledger(runner, "diverged", "rollback") == []
    assert small.same(small.state(stock), small.state(runner))


class Dip(Damage):
    """As a fine-tune without a warm-up: it unlearns at first, and learns again."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        weight = runner.model.bbox_head.fc_cls.weight.data
        before = weight.clone()
        super().before_train_iter(runner, batch_idx, data_batch)
        if runner.iter == 1:
            self.given = weight - before
        if runner.iter == LOOKS[0] + 5:
            weight.sub_(self.given)


def test_one_that_costs_twice_as_much_for_a_while_is_left_alone(tmp_path, trained):
    states = []
    for hooks in ([], [SUITE]):
        model = small.Scaled()
        model.load_state_dict(trained)
        slowly = dict(wrapper=dict(optimizer=dict(type="SGD", lr=1e-5)))
        runner = small.build(tmp_path, [*hooks, Dip(2.0)], model, iters=100, **slowly)
        runner.train()
        states.append(small.state(runner))
    assert small.ledger(runner, "diverged", "rollback") == []
    assert small.same(*states)
