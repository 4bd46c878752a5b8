import math

import pytest

from amp_hooks.config_check.warmup import all_known, warmup_iters
from amp_hooks.engine.finding import short_source, source
from tests.rollback.schedules import CHAINS, registered


def linear(**more):
    return dict(type="LinearLR", start_factor=0.001, by_epoch=False, **more)


STEP = dict(type="MultiStepLR", milestones=[8, 11])


@pytest.mark.parametrize(
    ("schedulers", "iterations"),
    [
        ([], 0),
        ([STEP], 0),
        ([linear(begin=0, end=500), STEP], 500),
        ([STEP, linear(begin=0, end=500)], 500),
        ([dict(linear(), type="mmengine.optim.LinearLR", end=500)], 500),
        ([dict(linear(end=500), start_factor=1.0)], 0),  # a decay
        ([dict(linear(end=500), start_factor=1.0, end_factor=0.1)], 0),
        ([linear(begin=300, end=500)], 0),  # later in the run
        ([linear()], math.inf),  # all of the run
        ([dict(type="LinearLR", end=500, by_epoch=False)], 500),  # from a third
        ([dict(type="ConstantLR", factor=0.1, by_epoch=False, end=200)], 200),
        ([dict(type="ConstantLR", factor=1, by_epoch=False, end=200)], 0),
        # Constant first, then rising: FCOS and others.
        (
            [
                dict(type="ConstantLR", factor=0.001, by_epoch=False, end=100),
                linear(begin=100, end=300),
            ],
            300,
        ),
        ([dict(type="QuadraticWarmupLR", end=2)], 8),  # in epochs
        ([dict(type="QuadraticWarmupLR", end=2, convert_to_iter_based=True)], 8),
        ([dict(type="LinearParamScheduler", param_name="lr", end=2)], 8),
        ([dict(type="LinearParamScheduler", param_name="momentum", end=2)], 0),
        ([dict(type="LinearMomentum", end=2)], 0),
        ([dict(type="OneCycleLR", total_steps=100, by_epoch=False)], 30),
        ([dict(type="OneCycleLR", total_steps=10, pct_start=0.5)], 20),
        (CHAINS["1x"], 9),
        (CHAINS["rtmdet"], 5),
        (CHAINS["yolox"], 4),
    ],
)
def test_iterations_of_warmup(schedulers, iterations):
    assert warmup_iters(schedulers, epoch_length=4) == iterations


def test_epochs_of_unknown_length():
    assert warmup_iters([dict(type="QuadraticWarmupLR", end=1)]) == math.inf
    assert warmup_iters([linear(end=50), STEP]) == 50


def test_every_scheduler_there_is_is_known():
    assert all_known([dict(type=name, param_name="lr") for name in registered()])
    assert not all_known([STEP, dict(type="MyWarmupLR")])
    assert all_known([dict(type="MyMomentum")])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (dict(max_norm=35, norm_type=2), "dict(max_norm=35, norm_type=2)"),
        ({"a.b": dict(lr_mult=0.1)}, "{'a.b': dict(lr_mult=0.1)}"),
        ({"from": 1}, "{'from': 1}"),
        (
            [dict(type="SGD"), ("train", 1), (2,)],
            "[dict(type='SGD'), ('train', 1), (2,)]",
        ),
        (dict, "'builtins.dict'"),
        (None, "None"),
    ],
)
def test_source(value, text):
    assert source(value) == text
    assert isinstance(value, type) or eval(text) == value


def test_short_source():
    assert short_source(dict(a=1)) == "dict(a=1)"
    assert short_source("x" * 100, 10) == "'xxxxxx..."
