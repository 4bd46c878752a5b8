import itertools

import pytest

from amp_hooks.core.verdict import Verdict, judge

V = Verdict


@pytest.mark.parametrize(
    ("forward", "grads", "scaler", "floor", "expected"),
    [
        (True, True, False, False, V.HEALTHY),
        (True, True, True, False, V.HEALTHY),
        (True, True, True, True, V.HEALTHY),
        (True, False, True, False, V.SCALE_OVERFLOW),
        (True, False, True, True, V.GRAD_NONFINITE),
        (True, False, False, False, V.GRAD_NONFINITE),
        (False, True, False, False, V.FORWARD_NONFINITE),
        (False, True, True, False, V.FORWARD_NONFINITE),
        (False, False, True, False, V.FORWARD_NONFINITE),
        (False, False, True, True, V.FORWARD_NONFINITE),
        (False, False, False, False, V.FORWARD_NONFINITE),
    ],
)
def test_table(forward, grads, scaler, floor, expected):
    verdict = judge(
        forward_finite=forward,
        grads_finite=grads,
        has_scaler=scaler,
        scale_at_floor=floor,
    )
    assert verdict is expected


def test_gravest_finding_wins_over_everything_else():
    for f, g, s, fl in itertools.product([True, False], repeat=4):
        rest = dict(forward_finite=f, grads_finite=g, has_scaler=s, scale_at_floor=fl)
        assert judge(**rest, state_finite=False) is V.STATE_NONFINITE
        assert judge(**rest, raised=True) is V.RAISED
        assert judge(**rest, raised=True, state_finite=False) is V.RAISED


def test_only_an_ordinary_overflow_and_health_do_not_count():
    assert [v for v in V if not v.is_bad] == [V.HEALTHY, V.SCALE_OVERFLOW]
