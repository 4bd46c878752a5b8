"""The weights of now and those of the start, on the same batch."""

import math

import pytest
import torch

from amp_hooks.engine.condition import Costs, State
from amp_hooks.health.start_look import LOOKS, ruined_start
from tests import small

SUITE = dict(type="amp_hooks.StabilityHook", preflight=None)


@pytest.mark.parametrize(
    ("costs", "ruined"),
    [
        (None, False),
        (Costs(1.4, 1.0, 0), False),  # as healthy ones rise for a while
        (Costs(2.1, 1.0, 0), True),
        (Costs(2.1, 1.0, 25), False),  # the snapshot of the start is gone
        (Costs(0.1, 7.0, 0), False),
        (Costs(1.0, 0.0, 0), False),  # a batch without objects
        (Costs(-1.0, -3.0, 0), False),  # a likelihood
        (Costs(math.nan, 1.0, 0), False),  # others judge that
        (Costs(1.0, math.nan, 0), False),
    ],
)
def test_how_much_worse_is_ruined(costs, ruined):
    found = ruined_start(costs)
    assert (found is not None) is ruined
    if found is not None:
        assert (found.state, found.since, found.loss_ratio) == (State.ILL, 0, 2.1)
        assert found.why == (
            "a batch costs 2.1, and 1 with the weights that the run began with"
        )


class HardFirst(small.Small):
    """Its first batch costs eight times what the others do."""

    factor = 1.0

    def losses(self, features, logits, y):
        return {
            n: self.factor * x for n, x in super().losses(features, logits, y).items()
        }


class Damage(small.Hook):
    """After the first batch the classifier is wrong, and finite."""

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


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    runner = small.build(tmp_path_factory.mktemp("trained"), iters=300)
    runner.train()
    return runner.model.state_dict()


def train(tmp_path, trained, size, hooks=(SUITE,), **length):
    model = HardFirst()
    model.load_state_dict(trained)
    slowly = dict(wrapper=dict(optimizer=dict(type="SGD", lr=1e-5)))
    hooks = [*hooks, Damage(size)]
    runner = small.build(tmp_path, hooks, model, **slowly, **length)
    runner.train()
    return runner


@pytest.mark.parametrize("length", [dict(iters=60), dict(epochs=2)])
def test_a_start_that_is_ruined_while_its_losses_tell_nothing(
    tmp_path, trained, length
):
    runner = train(tmp_path, trained, 2.0, **length)
    (diverged,) = small.ledger(runner, "diverged")
    (rollback,) = small.ledger(runner, "rollback")
    # The second look in a row that says so.
    assert (diverged["iter"], diverged["since"]) == (LOOKS[1], 0)
    assert "with the weights that the run began with" in diverged["why"]
    assert (rollback["iter"], rollback["target_iter"]) == (LOOKS[1], 0)
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


def test_looks_before_and_after_a_rollback_are_not_two_in_a_row(tmp_path, trained):
    model = HardFirst()
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
