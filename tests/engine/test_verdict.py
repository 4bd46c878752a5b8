import itertools

import pytest

from amp_hooks.engine.verdict import Verdict, judge

V = Verdict

# Columns: forward pass, gradients, state finite (1), scaler present, scale at floor,
# step raised. `*` is either. Each combination is in exactly one row.
TABLE = {
    "*****1": V.RAISED,
    "**0**0": V.STATE_NONFINITE,
    "0*1**0": V.FORWARD_NONFINITE,
    "111**0": V.HEALTHY,
    "101100": V.SCALE_OVERFLOW,
    "101110": V.GRAD_NONFINITE,
    "1010*0": V.GRAD_NONFINITE,
}


@pytest.mark.parametrize(
    "case", ["".join(c) for c in itertools.product("01", repeat=6)]
)
def test_every_combination(case):
    rows = [r for r in TABLE if all(a in ("*", b) for a, b in zip(r, case))]
    assert len(rows) == 1
    forward, grads, state, scaler, floor, raised = (c == "1" for c in case)
    verdict = judge(
        forward_finite=forward,
        grads_finite=grads,
        state_finite=state,
        has_scaler=scaler,
        scale_at_floor=floor,
        raised=raised,
    )
    assert verdict is TABLE[rows[0]]


def test_only_an_ordinary_overflow_and_health_do_not_count():
    assert [v for v in V if not v.is_bad] == [V.HEALTHY, V.SCALE_OVERFLOW]


def test_gradients_alone():
    alone = {verdict.value for verdict in Verdict if verdict.is_of_the_scale}
    assert alone == {"SCALE_OVERFLOW", "GRAD_NONFINITE"}
