"""The trajectory after a factor is the factor times the undisturbed one."""

import copy

import pytest
import torch
from mmengine.optim import OptimWrapper
from mmengine.optim.scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingMomentum,
    ExponentialLR,
    LinearLR,
    MultiStepLR,
    OneCycleLR,
    PolyLR,
    StepLR,
)

from amp_hooks.core.lr import scale_lr

CASES = {
    "constant": [(ConstantLR, dict(factor=0.3, end=12))],
    "linear": [(LinearLR, dict(start_factor=0.1, end=15))],
    "multistep": [(MultiStepLR, dict(milestones=[3, 8, 14], gamma=0.1))],
    "step": [(StepLR, dict(step_size=4, gamma=0.5))],
    "exponential": [(ExponentialLR, dict(gamma=0.9))],
    "cosine": [(CosineAnnealingLR, dict(T_max=20))],
    "cosine-eta-min": [(CosineAnnealingLR, dict(T_max=20, eta_min=0.01))],
    "cosine-ratio": [(CosineAnnealingLR, dict(T_max=20, eta_min_ratio=0.05))],
    "poly": [(PolyLR, dict(power=0.9, eta_min=0.003, end=20))],
    "onecycle": [(OneCycleLR, dict(eta_max=0.5, total_steps=25))],
    "warmup-multistep": [
        (LinearLR, dict(start_factor=0.01, end=9)),
        (MultiStepLR, dict(milestones=[12, 16], gamma=0.1)),
    ],
    "warmup-cosine": [
        (LinearLR, dict(start_factor=0.01, end=5)),
        (CosineAnnealingLR, dict(T_max=15, begin=5, end=20, eta_min=0.002)),
    ],
}


def make(case):
    layers = [torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)]
    groups = [
        dict(params=layers[0].parameters(), lr=0.1),
        dict(params=layers[1].parameters(), lr=0.02),
    ]
    wrapper = OptimWrapper(torch.optim.SGD(groups, lr=0.1, momentum=0.9))
    schedulers = [cls(wrapper, by_epoch=False, **kw) for cls, kw in CASES[case]]
    return wrapper, schedulers


def run(wrapper, schedulers, steps):
    values = []
    for _ in range(steps):
        values.append([group["lr"] for group in wrapper.param_groups])
        wrapper.optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    return values


@pytest.mark.parametrize("at", [1, 7, 13])
@pytest.mark.parametrize("case", CASES)
def test_trajectory(case, at):
    undisturbed = run(*make(case), 20)
    wrapper, schedulers = make(case)
    before = run(wrapper, schedulers, at)
    scale_lr(wrapper.param_groups, schedulers, 0.1)
    after = run(wrapper, schedulers, 20 - at)
    assert before == undisturbed[:at]
    assert len(after[0]) == 3  # two groups, and the base learning rate
    for got, plain in zip(after, undisturbed[at:]):
        assert got == pytest.approx([0.1 * lr for lr in plain], rel=1e-9)


def test_momentum_schedules_are_left_alone():
    wrapper, _ = make("constant")
    scheduler = CosineAnnealingMomentum(wrapper, T_max=20, by_epoch=False)
    base = copy.copy(scheduler.base_values)
    scale_lr(wrapper.param_groups, [scheduler], 0.1)
    assert scheduler.base_values == base


def test_a_tensor_learning_rate_is_scaled_in_place():
    lr = torch.tensor(0.1)
    group = dict(lr=lr)
    scale_lr([group], [], 0.5)
    assert group["lr"] is lr
    assert lr.item() == pytest.approx(0.05)
