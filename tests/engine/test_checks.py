import math

import pytest

from amp_hooks.engine import checks


@pytest.mark.parametrize("value", [0, -1])
def test_int_too_small_names_argument_value_and_remedy(value):
    with pytest.raises(
        ValueError, match=rf"RollbackHook: interval .* got {value}.*Set"
    ):
        checks.check_int("RollbackHook", "interval", value, 1)


@pytest.mark.parametrize("value", ["5", 5.0, True, None])
def test_not_an_int(value):
    with pytest.raises(TypeError, match="interval must be an integer"):
        checks.check_int("RollbackHook", "interval", value, 1)


@pytest.mark.parametrize("value", [0, -0.5, 1.5, math.nan, math.inf])
def test_number_outside(value):
    with pytest.raises(ValueError, match="lr_factor must be greater than 0 and at"):
        checks.check_number("RollbackHook", "lr_factor", value, 0, 1)


@pytest.mark.parametrize("value", ["0.5", True, None])
def test_not_a_number(value):
    with pytest.raises(TypeError, match="lr_factor must be a number"):
        checks.check_number("RollbackHook", "lr_factor", value, 0, 1)


def test_choice_and_patterns():
    with pytest.raises(ValueError, match="when must be one of"):
        checks.check_choice("HeadClampHook", "when", "sometimes", ("always",))
    assert checks.check_patterns("H", "targets", None) == []
    assert checks.check_patterns("H", "targets", "*.fc_cls") == ["*.fc_cls"]
    for value in (3, [], [1], ["a", ""]):
        with pytest.raises(TypeError, match="H: targets must be a module name pattern"):
            checks.check_patterns("H", "targets", value)


def test_a_pattern_without_match_lists_near_names():
    names = ["rpn_head.rpn_cls", "roi_head.bbox_head.fc_cls", "backbone"]
    with pytest.raises(ValueError, match=r"'\*\.fc_clss'.*roi_head\.bbox_head\.fc_cls"):
        checks.match_names("H", "targets", ["rpn_head.*", "*.fc_clss"], names)
    assert checks.match_names("H", "targets", ["*cls"], names) == names[:2]


def test_unknown_arguments():
    class Hook:
        def __init__(self, interval=1):
            pass

    with pytest.raises(TypeError, match="no argument 'intervall'.*mean 'interval'"):
        checks.check_known_arguments(Hook, ["intervall"])
