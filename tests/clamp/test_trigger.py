import pytest

from amp_hooks.clamp.trigger import HIGH_TIME, beyond_trigger, check_trigger
from amp_hooks.engine.headroom import FP16_MAX

FP32_MAX = 3.4e38


@pytest.mark.parametrize(
    ("trigger", "absmax", "largest", "beyond"),
    [
        (None, 1000.0, FP16_MAX, False),
        (None, 1000.1, FP16_MAX, True),
        (None, 1e30, FP32_MAX, False),
        (1000.0, 1000.0, FP16_MAX, False),
        (1000.0, 1000.1, FP16_MAX, True),
        (1000.0, 1000.1, FP32_MAX, True),
        (dict(headroom_bits=6.0), 1023.0, FP16_MAX, False),
        (dict(headroom_bits=6.0), 1024.0, FP16_MAX, True),
        (dict(headroom_bits=6.0), 1e6, FP32_MAX, False),
        (dict(headroom_bits=6.0), 1e37, FP32_MAX, True),
    ],
)
def test_from_where_on(trigger, absmax, largest, beyond):
    sizes, limits = {"a": 1.0, "b": absmax}, {"a": FP16_MAX, "b": largest}
    assert check_trigger("Hook", trigger, 100.0) == trigger
    assert beyond_trigger(trigger, sizes, limits, {}) is beyond


@pytest.mark.parametrize(
    ("trigger", "first", "absmax", "beyond"),
    [
        (None, 12.0, 1001.0, True),
        (None, 755.0, 1001.0, False),  # YOLOX, head weights x100
        (None, 755.0, 8 * 755.0 + 1, True),
        (None, 6408.0, HIGH_TIME, False),
        (None, 6408.0, HIGH_TIME + 1, True),
        (None, 20000.0, 20000.0, True),
        (1000.0, 755.0, 1001.0, True),
    ],
)
def test_logits_that_began_out_there_are_beyond_when_they_grow(
    trigger, first, absmax, beyond
):
    limits = {"a": FP16_MAX}
    assert beyond_trigger(trigger, {"a": absmax}, limits, {"a": first}) is beyond


def test_without_layers_nothing_is_beyond():
    assert not beyond_trigger(1.0, {}, {}, {})
    assert not beyond_trigger(dict(headroom_bits=1.0), {}, {}, {})


@pytest.mark.parametrize(
    ("trigger", "error", "words"),
    [
        ("big", TypeError, "trigger must be a number, got 'big'"),
        (True, TypeError, "trigger must be a number"),
        (0, ValueError, "trigger must be greater than 0"),
        (
            dict(bits=6.0),
            ValueError,
            r"or dict\(headroom_bits=6.0\), got {'bits': 6.0}",
        ),
        ({}, ValueError, r"or dict\(headroom_bits=6.0\)"),
        (dict(headroom_bits="6"), TypeError, r"trigger\['headroom_bits'\].*number"),
        (dict(headroom_bits=0), ValueError, r"trigger\['headroom_bits'\].*greater"),
        (99.0, ValueError, "trigger=99.0 must not be below limit=100.0.*Raise trigger"),
        (
            dict(headroom_bits=10),
            ValueError,
            r"\|logit\| of 63.97 .*Ask for fewer bits",
        ),
        (dict(headroom_bits=1e9), ValueError, "Ask for fewer bits"),
    ],
)
def test_what_makes_no_sense_is_refused(trigger, error, words):
    with pytest.raises(error, match=words):
        check_trigger("Hook", trigger, 100.0)


def test_a_clamp_that_is_always_on_needs_none():
    assert check_trigger("Hook", 1000.0, None) == 1000.0
    assert check_trigger("Hook", dict(headroom_bits=10), None) == dict(headroom_bits=10)
