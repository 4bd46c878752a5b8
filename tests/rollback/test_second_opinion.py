"""Two forward passes that decide whether it is the weights."""

import copy
import math
import random

import numpy as np
import pytest
import torch
from mmengine.logging import MessageHub

from amp_hooks.engine.condition import Condition, Costs, State
from amp_hooks.engine.runtime import Runtime
from amp_hooks.health.thresholds import WORSE
from tests import small

SUITE = [
    dict(
        type="amp_hooks.StabilityHook",
        preflight=None,
        rollback=dict(interval=10, probation=2),
    )
]


@pytest.mark.parametrize(
    ("now", "before", "expected"),
    [
        (1.0, 1.0, False),
        (1.1, 1.0, False),
        (0.2, 1.0, False),
        (2.0, 1.0, True),
        (math.nan, 1.0, True),
        (math.inf, 1.0, True),
        (1.0, math.nan, True),
        (1.0, 0.0, True),
        (0.0, 0.0, False),
        (-2.0, -1.0, False),
        (-0.222, -0.243, False),
        (0.1, -1.0, True),
        (-1.0, -2.0, True),
    ],
)
def test_the_weights_are_to_blame(now, before, expected):
    assert Costs(now, before, 0).worse(WORSE) is expected


class Offset(small.Small):
    """A loss that rises for good, by something that no weight can change."""

    more = 0.0

    def losses(self, features, logits, y):
        loss = super().losses(features, logits, y)["loss_cls"]
        features = torch.nn.functional.dropout(features, 0.1, self.training)
        return dict(loss_cls=loss + self.more + 0.0 * features.sum())


class Rise(small.Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        model = runner.model
        getattr(model, "module", model).more = 20.0 * (runner.iter >= 60)


@pytest.mark.parametrize("dtype", small.DTYPES)
@pytest.mark.parametrize("accumulate", [1, 4])
def test_it_leaves_no_trace(tmp_path, dtype, accumulate):
    """Weights, BatchNorm, generators: all are those of a run without it."""
    more = dict(wrapper=dict(accumulative_counts=accumulate))
    stock = small.build(tmp_path, [Rise()], Offset, dtype, 200, **more)
    stock.train()
    runner = small.build(tmp_path, [*SUITE, Rise()], Offset, dtype, 200, **more)
    runner.train()
    assert small.same(small.state(stock), small.state(runner))
    excused = [line for line in small.ledger(runner, "well") if "why" in line]
    assert 1 <= len(excused) <= 2
    assert small.ledger(runner, "diverged", "rollback") == []


class Books(small.Small):
    """What it has counted and kept decides on its loss."""

    def __init__(self):
        super().__init__()
        self.mean, self.seen, self.scales = torch.zeros(16), [], np.ones(2)
        self.rngs = [np.random.RandomState(0), np.random.default_rng(0)]
        self.dice, self.hidden = random.Random(0), [torch.nn.BatchNorm1d(16)]

    def losses(self, features, logits, y):
        with torch.no_grad():
            self.mean.mul_(0.9).add_(features.mean(0).float(), alpha=0.1)
            self.mean.data.mul_(0.99)
            self.seen.append(len(y))
            self.scales *= 1.001
            self.hidden[0](features.float())
        loss = super().losses(features, logits, y)["loss_cls"]
        factor = 1 + 0.01 * self.calls + 0.001 * len(self.seen) + self.scales[0]
        factor += sum(rng.random() for rng in self.rngs) + self.dice.random()
        factor += float(self.hidden[0].running_mean.sum())
        return dict(loss_cls=loss * float(factor) * (1 + self.mean.mean()))


class Logs(small.Small):
    """By itself, in its forward pass; and what it has logged decides on its loss."""

    def losses(self, features, logits, y):
        hub = MessageHub.get_current_instance()
        hub.update_info("calls", hub.runtime_info.get("calls", 0) + 1)
        hub.update_scalar("train/mean", features.mean().detach())
        loss = super().losses(features, logits, y)["loss_cls"]
        return dict(loss_cls=loss * (1 + 0.01 * hub.get_info("calls")))


class NormalizesItsWeights(small.Small):
    """The weights get new memory in each forward pass, as in binary networks."""

    def forward(self, x, y, mode="loss"):
        weight = self.bbox_head.fc_cls.weight
        weight.data = torch.nn.functional.normalize(weight.data, dim=1)
        return super().forward(x, y, mode)


@pytest.mark.parametrize("model", [Books, Logs, NormalizesItsWeights])
@pytest.mark.parametrize("length", [dict(iters=100), dict(epochs=3)])
def test_a_model_of_its_own_ways_trains_as_it_would_without(tmp_path, length, model):
    """The start is looked at in every run: nothing may come of it in a healthy one."""
    stock = small.build(tmp_path, model=model, **length)
    stock.train()
    looks = Looks()
    suite = dict(type="amp_hooks.StabilityHook")
    runner = small.build(tmp_path, [suite, looks], model, **length)
    runner.train()
    assert runner.model.calls == stock.model.calls
    logged = [r.message_hub.log_scalars.get("train/mean") for r in (stock, runner)]
    if model is Logs:
        assert np.array_equal(logged[0].data[0], logged[1].data[0])
    assert small.same(small.state(stock), small.state(runner))
    assert looks.costs.comparable


class Features(small.Hook):
    """Collects one of each iteration, for a picture."""

    def __init__(self):
        self.seen = []

    def before_train(self, runner):
        def collect(module, args, output):
            self.seen.append(output.detach().mean())

        runner.model.backbone.register_forward_hook(collect)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        assert len(self.seen) == runner.iter + 1


def test_a_healthy_run_calls_no_hook_of_the_user_once_more(tmp_path):
    suite = dict(type="amp_hooks.StabilityHook", preflight=None)
    runner = small.build(tmp_path, [suite, features := Features()], iters=100)
    runner.train()
    assert len(features.seen) == 100


class Looks(small.Hook):
    """Asks once more, of itself."""

    costs = None

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter == 45:
            ill = Condition(State.ILL, since=0)
            self.costs = Runtime.of(runner).second_opinion(ill)


class Extra(small.Small):
    """State that is no tensor."""

    def get_extra_state(self):
        return dict(version=1)

    def set_extra_state(self, state):
        assert state == dict(version=1)


class Penalty(small.Small):
    """Needs gradients within its forward pass."""

    def losses(self, features, logits, y):
        (slope,) = torch.autograd.grad(logits.sum(), features, create_graph=True)
        losses = super().losses(features, logits, y)
        return dict(losses, loss_penalty=0.01 * slope.pow(2).mean())


class Eval(small.Small):
    """Fine-tuned with dropout and BatchNorm as in evaluation."""

    def train(self, mode=True):
        return super().train(False)


@pytest.mark.parametrize("model", [Extra, Penalty, Eval])
def test_models_that_can_be_compared_all_the_same(tmp_path, model):
    looks = Looks()
    stock = small.build(tmp_path, [], model, iters=50)
    stock.train()
    runner = small.build(tmp_path, [*SUITE, looks], model, iters=50)
    runner.train()
    assert looks.costs.comparable
    pairs = zip(stock.model.parameters(), runner.model.parameters())
    assert all(torch.equal(a, b) for a, b in pairs)


def test_calls_for_something_else_tell_nothing(tmp_path):
    """Images of a generator, say, in a dict: there is no loss among them."""

    class Generates(small.Small):
        def forward(self, x, y, mode="loss"):
            return dict(fake=self.bbox_head.fc_cls(self.backbone(x)))

        def train_step(self, data, optim_wrapper):
            data = self.data_preprocessor(data, True)
            loss = self.bbox_head.loss_cls(self(**data)["fake"], data["y"])
            optim_wrapper.update_params(loss)
            return dict(loss=loss.detach())

    looks = Looks()
    runner = small.build(tmp_path, [*SUITE, looks], Generates, iters=50)
    runner.train()
    assert looks.costs is None
    assert small.ledger(runner, "diverged") == []


def test_several_calls_in_an_iteration_are_added_up(tmp_path):
    class Twice(small.Small):
        def train_step(self, data, optim_wrapper):
            with optim_wrapper.optim_context(self):
                data = self.data_preprocessor(data, True)
                first, second = self(**data), self(**data)
            total = first["loss_cls"] + second["loss_cls"]
            optim_wrapper.update_params(total)
            return dict(loss=total.detach())

    looks, seen = Looks(), small.Seen()
    runner = small.build(tmp_path, [*SUITE, looks, seen], Twice, iters=50)
    runner.train()
    assert looks.costs.comparable
    assert looks.costs.now == pytest.approx(seen.losses[45], rel=0.3)


def test_a_model_of_its_own_ways_is_judged_by_its_loss(tmp_path):
    """It cannot be run again: the loss decides, as without a second opinion."""

    class Own(small.Small):
        calls_of_now = 0

        def forward(self, x, y, mode="loss"):
            if not torch.is_grad_enabled():
                raise RuntimeError("not without gradients")
            return super().forward(x, y, mode)

    hooks = [*SUITE, small.RaiseLR(1000)]
    runner = small.build(tmp_path, hooks, Own, iters=200)
    runner.train()
    assert small.ledger(runner, "rollback")[0]["iter"] <= 90


def test_a_copy_of_the_model_is_no_copy_of_the_run(tmp_path):
    class Copy(small.Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            if runner.iter == 5:
                self.made = copy.deepcopy(runner.model)

    hook = Copy()
    runner = small.build(tmp_path, [*SUITE, hook], iters=20)
    runner.train()
    assert hook.made is not runner.model
    assert runner.iter == 20
    assert len(runner.model._forward_pre_hooks) == 0
