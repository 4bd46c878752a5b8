"""Losses that rise in healthy runs: of queues of keys, of optimizers that compete."""

import copy
from dataclasses import replace

import pytest
import torch
from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch import nn
from torch.nn import functional as F

from amp_hooks.engine.condition import Condition, Costs, State
from amp_hooks.health.blame import excuse, undecided
from amp_hooks.health.waiting import Waiting
from tests import small

ROLLBACK = dict(interval=20, probation=5)
SUITE = dict(type="amp_hooks.StabilityHook", preflight=None, rollback=ROLLBACK)
INTERVENTIONS = ("diverged", "rollback", "veto", "clamp_on", "fallback", "abort")


class Contrast(small.Small):
    """MoCo: keys of a momentum encoder wait in a queue that begins with noise.

    Against noise a loss is near 0; against keys it is of the order of log(queue).
    """

    def __init__(self, queue=1024):
        super().__init__()
        layers = [nn.Linear(8, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 32)]
        self.query = nn.Sequential(*layers)
        self.key = copy.deepcopy(self.query).requires_grad_(False)
        self.register_buffer("queue", F.normalize(torch.randn(queue, 32), dim=1))
        self.at = 0  # counted, as many do, in an attribute

    def forward(self, x, y, mode="loss"):
        query = F.normalize(self.query(x + 0.05 * torch.randn_like(x)), dim=1)
        with torch.no_grad():
            for a, b in zip(self.query.parameters(), self.key.parameters()):
                b.lerp_(a, 0.001)
            key = F.normalize(self.key(x + 0.05 * torch.randn_like(x)), dim=1)
        positive = (query * key).sum(1, keepdim=True)
        logits = torch.cat([positive, query @ self.queue.clone().T], 1).float()
        self.queue[self.at : self.at + len(x)] = key
        self.at = (self.at + len(x)) % len(self.queue)
        target = torch.zeros(len(x), dtype=torch.long)
        return dict(loss=F.cross_entropy(logits / 0.07, target))


@pytest.mark.parametrize("length", [dict(iters=150), dict(epochs=5)])
def test_a_queue_that_fills(tmp_path, length):
    states = []
    for hooks in ([], [SUITE]):
        seen = small.Seen()
        runner = small.build(tmp_path, [*hooks, seen], Contrast, **length)
        runner.train()
        states.append(small.state(runner))
    assert max(seen.losses[60:]) > 10 * seen.losses[0]
    assert small.ledger(runner, *INTERVENTIONS) == []
    assert small.ledger(runner, "snapshot")[-1]["iter"] > 40
    assert small.same(*states)


class PolicyGradient(small.Small):
    """REINFORCE with a penalty: a loss of either sign, whose zero means nothing."""

    def __init__(self):
        super().__init__()
        layers = [nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU()]
        self.backbone = nn.Sequential(*layers, nn.Linear(64, 16), nn.ReLU())
        layers = nn.Sequential(self.backbone, self.bbox_head.fc_cls)
        self.reference = copy.deepcopy(layers).requires_grad_(False)

    def forward(self, x, y, mode="loss"):
        now = self.bbox_head.fc_cls(self.backbone(x)).float().log_softmax(1)
        action = torch.distributions.Categorical(logits=now.detach()).sample()
        reward = (action == y).float()
        advantage = (reward - reward.mean()) / (reward.std() + 1e-6)
        chosen = now.gather(1, action[:, None])[:, 0]
        penalty = (now.exp() * (now - self.reference(x).log_softmax(1))).sum(1)
        return dict(
            loss_policy=-(advantage * chosen).mean(), loss_kl=0.1 * penalty.mean()
        )


def test_losses_below_0(tmp_path):
    adam = dict(wrapper=dict(optimizer=dict(type="Adam", lr=3e-3)), iters=300)
    stock = small.build(tmp_path, [], PolicyGradient, **adam)
    stock.train()
    suite = dict(SUITE, rollback=dict(interval=500))
    runner = small.build(tmp_path, [suite], PolicyGradient, **adam)
    runner.train()
    assert small.ledger(runner, *INTERVENTIONS) == []
    assert small.same(small.state(stock), small.state(runner))


class Gan(small.Small):
    """What is real becomes easier to tell, so that the generator's loss rises."""

    def __init__(self):
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 8))
        self.discriminator = nn.Sequential(
            nn.Linear(8, 128), nn.LeakyReLU(0.2), nn.Linear(128, 1)
        )

    def train_step(self, data, optim_wrapper):
        self.calls += 1
        real = self.data_preprocessor(data, True)["x"] * (1 + self.calls / 100)
        d, g = optim_wrapper["discriminator"], optim_wrapper["generator"]
        noise = torch.randn(len(real), 16)
        with d.optim_context(self.discriminator):
            fake = self.discriminator(self.generator(noise).detach())
            true = self.discriminator(real)
            loss_disc = F.softplus(fake).mean() + F.softplus(-true).mean()
        d.update_params(loss_disc)
        self.discriminator.requires_grad_(False)
        with g.optim_context(self.generator):
            fake = self.discriminator(self.generator(noise))
            loss_gen = F.softplus(-fake).mean()
        g.update_params(loss_gen)
        self.discriminator.requires_grad_(True)
        return dict(loss_disc=loss_disc.detach(), loss_gen=loss_gen.detach())


class RaiseBoth(small.RaiseLR):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == 60:
            for wrapper in runner.optim_wrapper.values():
                for group in wrapper.optimizer.param_groups:
                    group["lr"] *= self.factor


def train_gan(tmp_path, hooks, iters):
    torch.manual_seed(0)
    model = Gan()
    rates = dict(discriminator=3e-3, generator=1e-5)
    wrappers = {
        name: OptimWrapper(torch.optim.Adam(getattr(model, name).parameters(), lr))
        for name, lr in rates.items()
    }
    more = dict(optim_wrapper=OptimWrapperDict(**wrappers))
    seen = small.Seen()
    runner = small.build(tmp_path, [*hooks, seen], model, iters=iters, **more)
    runner.train()
    return runner


@pytest.mark.long
def test_optimizers_that_compete(tmp_path):
    stock = train_gan(tmp_path, [], 500)
    runner = train_gan(tmp_path, [SUITE], 500)
    (line,) = small.ledger(runner, "well")
    assert "2 optimizers may work against each other" in line["why"]
    assert small.ledger(runner, *INTERVENTIONS) == []
    assert small.same(small.state(stock), small.state(runner))


def test_a_ruin_is_one_there_too(tmp_path):
    runner = train_gan(tmp_path, [SUITE, RaiseBoth(1000)], 200)
    (rollback, *_) = small.ledger(runner, "rollback")
    assert rollback["target_iter"] <= 60 < rollback["iter"] <= 90


ILL = Condition(State.ILL, since=5, why="loss 3 for 1", loss_ratio=3.0)


@pytest.mark.parametrize(
    ("ill", "costs", "optimizers", "excused"),
    [
        (ILL, Costs(3.0, 1.0, 0), 2, False),
        (ILL, Costs(3.0, 3.0, 0), 1, True),
        (ILL, Costs(1.4, 1.4, 0, usual=5.0), 1, False),  # as all that knows nothing
        (ILL, Costs(1.1, 1.4, 0, usual=5.0), 1, True),
        (ILL, Costs(1.4, 1.4, 0, usual=5.0, unlike=3.0), 1, True),
        (ILL, Costs(0.5, 1.4, 0, usual=5.0, compared=False), 1, True),
        (ILL, Costs(1.4, 1.4, 0, usual=5.0, compared=False), 1, False),
        (ILL, Costs(1.4, 1.4, 0, usual=5.0, compared=False), 2, True),
        (ILL, None, 1, False),
        (ILL, None, 2, True),
        (Condition(State.ILL, loss_ratio=20.0), None, 2, False),
        (Condition(State.ILL, loss_ratio=None), None, 2, True),
        (Condition(State.ILL, loss_ratio=1.0, by_loss=False), None, 2, False),
    ],
)
def test_what_is_an_excuse(ill, costs, optimizers, excused):
    assert (excuse(ill, costs, optimizers) is not None) is excused


LATER = Condition(State.ILL, since=300, loss_ratio=3.0)
ROSE = Condition(State.ILL, since=300, loss_ratio=3.0, lr_rise=10.0)
WRONG = Costs(5.0, 1.4, 0, usual=5.0)  # with confidence, as good weights on new data


@pytest.mark.parametrize(
    ("ill", "costs", "open_"),
    [
        (LATER, WRONG, True),
        (ILL, WRONG, False),  # there is little to lose
        (ROSE, WRONG, False),
        (LATER, WRONG._replace(now=20.0), False),
        (LATER, WRONG._replace(usual=1.0), False),
        (LATER, WRONG._replace(unlike=3.0), False),
        (LATER, WRONG._replace(compared=False), True),
        (LATER, Costs(1.9, 1.0, 500), True),  # noise: too sure of itself, perhaps
        (LATER, Costs(2.1, 1.0, 500), False),
        (LATER, Costs(-1.0, -1.5, 500), False),
        (replace(LATER, warms_up=True), WRONG, False),
        (LATER, None, False),
    ],
)
def test_when_time_will_tell(ill, costs, open_):
    assert undecided(ill, costs) is open_


def test_as_long_as_it_learns():
    waiting = Waiting()
    ill = replace(LATER, level=1.0, start=1.4)
    assert waiting.learns(ill)
    assert not waiting.is_open(310, ill)
    waiting.ask_again(310, ill)
    assert waiting.is_open(409, ill)
    assert not waiting.is_open(410, ill)
    assert not waiting.is_open(350, replace(ill, since=340))  # another onset
    assert not waiting.is_open(350, replace(ill, loss_ratio=20.0))  # far worse
    assert not waiting.is_open(350, replace(ill, lr_rise=10.0))
    for iteration, loss, learns in ((410, 2.0, True), (510, 1.9, True), (610, 1.9, 0)):
        state, losses, waiting = waiting.state(), [loss] * 100, Waiting()
        waiting.load_state(state)
        for loss in losses:
            waiting.add(loss)
        assert waiting.learns(replace(ill, median=waiting.median)) == learns
        waiting.ask_again(iteration, replace(ill, median=waiting.median))
        assert waiting.has_learned(ill.since) is (iteration > 410)
    assert waiting.is_open(620, replace(ill, since=600))  # of another rank
    assert not waiting.is_open(620, replace(ill, since=611))
    assert waiting.learns(replace(ill, since=611, median=5.0))
    assert not waiting.has_learned(611)
    waiting.end()
    assert not waiting.is_open(611, ill)


@pytest.mark.parametrize(("least", "now", "learns"), [(-1.0, -1.0, 0), (-1.0, -1.1, 1)])
def test_a_loss_below_0_learns_too(least, now, learns):
    waiting = Waiting()
    waiting.ask_again(310, LATER)
    waiting.ask_again(410, replace(LATER, median=least))
    assert waiting.learns(replace(LATER, median=now)) == learns
    assert waiting.is_open(440, replace(LATER, start=-3.0, level=-5.0))
