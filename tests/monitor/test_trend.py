import math
import random

import pytest

from amp_hooks.monitor.logits import LogitTrend


def first_forecast(trend, values):
    for i, value in enumerate(values):
        forecast = trend.add(value)
        if forecast is not None:
            return i, forecast
    return None


def test_a_steady_rise_is_extrapolated_to_the_limit():
    """10 % per iteration from 30: past 65504 after iteration 40 + 80."""
    values = [30.0] * 40 + [30.0 * 1.1**i for i in range(1, 90)]
    overflow = next(i for i, v in enumerate(values) if v > 65504)
    at, forecast = first_forecast(LogitTrend(horizon=50), values)
    assert 40 < at < overflow - 30
    assert forecast.absmax == values[at] > 100.0
    assert forecast.iterations_left == pytest.approx(overflow - at, rel=0.3)


@pytest.mark.parametrize(
    "values",
    [
        [random.Random(0).uniform(20.0, 90.0) for _ in range(3000)],  # below the floor
        [0.1 * 1.3**i for i in range(26)] + [90.0] * 50,  # a new classifier grows
        [2000.0] * 500,  # large, but steady
        [2000.0 * random.Random(1).uniform(0.9, 1.1) for _ in range(3000)],
        [8000.0 * 0.99**i for i in range(500)],  # large, and coming down
        [math.nan, math.inf, 0.0] * 100,
    ],
    ids=["low", "young", "steady", "noisy", "falling", "nothing finite"],
)
def test_no_forecast(values):
    assert first_forecast(LogitTrend(horizon=100), values) is None


def test_non_finite_values_do_not_stick():
    trend, clean = LogitTrend(horizon=50), LogitTrend(horizon=50)
    for i in range(60):
        clean.add(30.0 + i % 3)
        trend.add(30.0 + i % 3)
        trend.add(math.nan)
        trend.add(math.inf)
    assert trend.state() == clean.state()


def test_a_jump_close_to_the_limit_is_told_at_once():
    values = [30.0] * 20 + [40000.0]
    at, forecast = first_forecast(LogitTrend(horizon=100), values)
    assert at == 20
    assert forecast.iterations_left == 2


def test_state_goes_round():
    trend, other = LogitTrend(horizon=50), LogitTrend(horizon=50)
    for i in range(30):
        trend.add(5.0 + i)
    other.load_state(trend.state())
    assert other.add(5000.0) == trend.add(5000.0)
