import pytest
import torch

from amp_hooks.monitor.logits import infinity_is_overflow, largest_number, logit_stats
from amp_hooks.precision.half_rehearsal import half_rehearsal

INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("values", "absmax", "nan", "inf"),
    [
        ([1.0, -3.0], 3.0, 0, 0),
        ([1.0, INF], 1.0, 0, 1),
        ([-INF, -2.0, INF], 2.0, 0, 2),
        ([NAN, 0.5], 0.5, 1, 0),
        ([NAN, INF, NAN], 0.0, 2, 1),
        ([], 0.0, 0, 0),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_stats(values, absmax, nan, inf, dtype):
    got = logit_stats(torch.tensor(values, dtype=dtype))
    assert [x.item() for x in got] == [absmax, nan, inf]
    assert {x.dtype for x in got} == {torch.float32}


def test_stats_of_many_large_values_do_not_overflow():
    x = torch.full((70000,), 65504.0, dtype=torch.float16)
    assert [s.item() for s in logit_stats(x)] == [65504.0, 0.0, 0.0]


def test_where_an_infinity_is_an_overflow():
    layers = [torch.nn.Linear(2, 2), torch.nn.Conv2d(1, 1, 1), torch.nn.Identity()]
    assert [infinity_is_overflow(layer) for layer in layers] == [True, True, False]


def test_the_limit_is_that_of_the_precision():
    assert largest_number(torch.ones(1, dtype=torch.float16)) == 65504.0
    assert largest_number(torch.ones(1, dtype=torch.bfloat16)) > 3e38
    with half_rehearsal():
        assert largest_number(torch.ones(1)) == 65504.0
        with torch.autocast("cpu", enabled=False):
            assert largest_number(torch.ones(1)) > 3e38
    assert largest_number(torch.ones(1)) > 3e38
