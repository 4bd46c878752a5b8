"""Losses of runs, healthy and ruined, made from a seed: each is a list of iterations.

A curve has a *shape* (what the loss would be without noise) and a *noise* of its log.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass
class Step:
    """What RunHealth.add takes of one iteration."""

    loss: float
    terms: dict[str, float] = field(default_factory=dict)
    lr: float | None = None
    grad_norm: float | None = None
    clamped: float | None = None


class Noise:
    """Multiplies: white, or with memory (AR(1)), with hard batches now and then."""

    def __init__(self, seed, sigma, memory=0.0, hard=0.0):
        self.random = random.Random(seed)
        self.sigma, self.memory, self.hard = sigma, memory, hard
        self.last = self.random.gauss(0, sigma)

    def __call__(self):
        fresh = self.random.gauss(0, self.sigma)
        self.last = self.memory * self.last + math.sqrt(1 - self.memory**2) * fresh
        factor = math.exp(self.last)
        if self.hard and self.random.random() < self.hard:
            factor *= self.random.choice((5, 10, 50))
        return factor


def falling(i, length, first=2.0, last=0.4):
    """From scratch: fast at first, then slowly."""
    return last + (first - last) * (
        0.7 * math.exp(-12 * i / length) + 0.3 * math.exp(-2 * i / length)
    )


def warm_up(i, length, base=0.01):
    """Linear, from a thousandth."""
    n = min(500, max(10, length // 20))
    return base * min(1.0, 0.001 + i / n)


def scratch(seed, length, sigma, memory=0.0, hard=0.0) -> Iterator[Step]:
    noise = Noise(seed, sigma, memory, hard)
    for i in range(length):
        yield Step(falling(i, length) * noise(), lr=warm_up(i, length))


def steps(seed, length, sigma, memory=0.0, hard=0.0) -> Iterator[Step]:
    """The learning rate falls by 10 twice; the loss falls with it."""
    noise = Noise(seed, sigma, memory, hard)
    for i in range(length):
        drops = (i > 0.66 * length) + (i > 0.9 * length)
        lr = warm_up(i, length) * 0.1**drops
        yield Step(falling(i, length) * 0.7**drops * noise(), lr=lr)


def cosine(seed, length, sigma, memory=0.0, hard=0.0) -> Iterator[Step]:
    noise = Noise(seed, sigma, memory, hard)
    for i in range(length):
        share = 0.5 * (1 + math.cos(math.pi * i / length))
        loss = falling(i, length) * (0.6 + 0.4 * share)
        yield Step(loss * noise(), lr=warm_up(i, length) * max(share, 1e-3))


def restarts(seed, length, sigma, memory=0.0, hard=0.0, high=5.0) -> Iterator[Step]:
    """Cosine with warm restarts: LR x1000, loss up to x5 for a good part of a cycle."""
    noise = Noise(seed, sigma, memory, hard)
    cycle = max(200, length // 4)
    loss = 1.8
    for i in range(length):
        share = 0.5 * (1 + math.cos(math.pi * (i % cycle) / cycle))
        lr = 0.01 * max(share, 1e-3)
        target = 0.3 * high ** math.sqrt(share)
        if i < cycle:
            target = max(target, falling(i, length))
        loss += (target - loss) / 30  # a model takes a while to lose what it knew
        yield Step(loss * noise(), lr=lr)


def fine_tune(seed, length, sigma, memory=0.0, hard=0.0) -> Iterator[Step]:
    """Good weights, and a warm-up that raises the loss by 30 % before it falls."""
    noise = Noise(seed, sigma, memory, hard)
    n = min(500, max(10, length // 20))
    for i in range(length):
        up = 1 + 0.3 * min(1, i / n) * math.exp(-max(0, i - n) / (4 * n))
        fall = 1 - 0.3 * i / length
        yield Step(0.9 * up * fall * noise(), lr=warm_up(i, length))


def flat(seed, length, sigma, memory=0.0, hard=0.0) -> Iterator[Step]:
    """A converged model trained on, at one learning rate from the first iteration."""
    noise = Noise(seed, sigma, memory, hard)
    for _ in range(length):
        yield Step(0.8 * noise(), lr=0.001)


def term_on(seed, length, sigma, memory=0.0, hard=0.0, zero=False) -> Iterator[Step]:
    """YOLOX: loss_l1 begins late and adds 80 %; its key was absent, or it was 0."""
    noise, other = Noise(seed, sigma, memory, hard), Noise(seed + 1, sigma)
    for i in range(length):
        known = falling(i, length) * noise()
        terms = dict(loss_cls=known * 0.6, loss_bbox=known * 0.4)
        if i > 0.6 * length:
            terms["loss_l1"] = 0.8 * falling(i, length) * other()
        elif zero:
            terms["loss_l1"] = 0.0
        yield Step(sum(terms.values()), terms, lr=warm_up(i, length))


def term_zero(seed, length, sigma, memory=0.0, hard=0.0) -> Iterator[Step]:
    return term_on(seed, length, sigma, memory, hard, zero=True)


def term_off(seed, length, sigma, memory=0.0, hard=0.0) -> Iterator[Step]:
    """A term vanishes, and comes back."""
    noise = Noise(seed, sigma, memory, hard)
    for i in range(length):
        known = falling(i, length) * noise()
        terms = dict(loss_cls=known * 0.5)
        if not 0.4 * length < i < 0.7 * length:
            terms["loss_aux"] = known * 0.5
        yield Step(sum(terms.values()), terms, lr=warm_up(i, length))


def no_positives(seed, length, sigma, memory=0.0, hard=0.0) -> Iterator[Step]:
    """Batches without objects: a term is 0 in a third of them."""
    noise, rand = Noise(seed, sigma, memory, hard), random.Random(seed)
    for i in range(length):
        known = falling(i, length) * noise()
        box = 0.0 if rand.random() < 0.33 else known * rand.uniform(0.1, 1.0)
        terms = dict(loss_cls=known * 0.5, loss_bbox=box, loss_rare=0.0)
        if rand.random() < 0.05:
            terms["loss_rare"] = rand.uniform(0, 0.5)
        yield Step(sum(terms.values()), terms, lr=warm_up(i, length))


def mosaic(seed, length, sigma, memory=0.0, hard=0.0, factor=None) -> Iterator[Step]:
    """Augmentation is closed: the loss moves by up to 40 % and stays there."""
    noise = Noise(seed, sigma, memory, hard)
    factor = factor or (1.4 if seed % 2 else 0.6)
    for i in range(length):
        now = factor if i > 0.85 * length else 1.0
        yield Step(falling(i, length) * now * noise(), lr=warm_up(i, length))


def likelihood(seed, length, sigma, memory=0.0, hard=0.0) -> Iterator[Step]:
    """A negative log-likelihood: from 5 to below 0."""
    noise = Noise(seed, 1.0, memory)
    for i in range(length):
        loss = 7 * math.exp(-5 * i / length) - 2.5 + sigma * math.log(noise())
        yield Step(loss, lr=warm_up(i, length))


def to_zero(seed, length, sigma, memory=0.0, hard=0.0) -> Iterator[Step]:
    """An easy task, overfitted: the loss ends at 0, with hard batches in between."""
    noise, rand = Noise(seed, max(sigma, 0.3), memory), random.Random(seed)
    for i in range(length):
        loss = 1.4 * math.exp(-20 * i / length) * noise()
        if rand.random() < 0.02:
            loss += rand.uniform(0, 0.3)
        yield Step(max(0.0, loss - 1e-5), lr=warm_up(i, length))


def oscillating(seed, length, sigma, memory=0.0, hard=0.0) -> Iterator[Step]:
    """As GANs do: twice up, twice down."""
    noise, rand = Noise(seed, sigma, memory, hard), random.Random(seed)
    period = rand.choice((10, 30, 60, 150))
    for i in range(length):
        wave = 2 ** math.sin(2 * math.pi * i / period)
        yield Step(1.5 * wave * noise(), lr=2e-4)


def curriculum(seed, length, sigma, memory=0.0, hard=0.0) -> Iterator[Step]:
    """Harder data, little by little: x1.5."""
    noise = Noise(seed, sigma, memory, hard)
    for i in range(length):
        loss = falling(i, length) * 1.5 ** max(0, 2 * i / length - 1)
        yield Step(loss * noise(), lr=warm_up(i, length))


def two_sources(seed, length, sigma, memory=0.0, hard=0.0) -> Iterator[Step]:
    """Batches of two data sets, one of which costs five times as much."""
    noise, rand = Noise(seed, sigma, memory, hard), random.Random(seed)
    share = rand.choice((0.1, 0.2, 0.3, 0.5, 0.8))
    for i in range(length):
        dear = 5.0 if rand.random() < share else 1.0
        yield Step(falling(i, length) * dear * noise(), lr=warm_up(i, length))


def bad_luck(seed, length, sigma, memory=0.0, hard=0.0) -> Iterator[Step]:
    """Three batches in a row at x50, once; one at x3e6."""
    noise, rand = Noise(seed, sigma, memory, hard), random.Random(seed)
    at = rand.randrange(length - 10)
    huge = rand.randrange(length)
    for i in range(length):
        loss = falling(i, length) * noise()
        loss *= 50 if at <= i < at + 3 else 1
        loss *= 3e6 if i == huge else 1
        yield Step(loss, lr=warm_up(i, length))


HEALTHY = (
    scratch, steps, cosine, restarts, fine_tune, flat, term_on, term_zero, term_off,
    no_positives, mosaic, likelihood, to_zero, oscillating, curriculum, two_sources,
    bad_luck,
)  # fmt: skip


def ruined(seed, length, at, factor, sigma, memory=0.0, jump=1000.0, rise=1):
    """The learning rate jumps at ``at``; the loss goes to ``factor`` for good."""
    noise, more = Noise(seed, sigma, memory), Noise(seed + 7, 0.3)
    for i in range(length):
        loss = falling(i, length) * noise()
        lr = warm_up(i, length)
        if i >= at:
            loss = falling(at, length) * factor ** min(1, (i - at + 1) / rise) * more()
            lr = lr * jump if jump else lr
        yield Step(loss, lr=lr)


def chance(seed, length, at, sigma, chance=1.39, healthy=0.54):
    """Ruin that looks tidy: the loss is a constant, no gradient is left."""
    noise = Noise(seed, sigma)
    for i in range(length):
        if i < at:
            yield Step(healthy * noise(), lr=0.1, grad_norm=noise())
        else:
            yield Step(chance * noise() ** 0.2, lr=100.0, grad_norm=0.0)


def follow(health, steps, first=0):
    """Runs a curve; returns the iterations watched, and the first ill with since."""
    watched, ill = 0, None
    for i, s in enumerate(steps, first):
        health.add(i, s.loss, s.terms, s.lr, s.grad_norm, s.clamped)
        watched += health.condition == 1
        if health.condition == 2 and ill is None:
            ill = (i, health.since, health.why)
    return watched, ill
