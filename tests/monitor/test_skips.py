import pytest

from amp_hooks.monitor.skips import SkipCounter, SkipKind


def feed(counter, pattern, at_floor=False):
    return [counter.add(c == "x", at_floor) for c in pattern]


def test_kinds_from_start_to_collapse():
    counter = SkipCounter(patience=3, calibration=5)
    assert feed(counter, "xx..") == [SkipKind.CALIBRATION] * 2 + [None] * 2
    assert feed(counter, "..x..xxx") == [
        *[None, None, SkipKind.ORDINARY, None, None],
        *[SkipKind.ORDINARY, SkipKind.ORDINARY, SkipKind.COLLAPSE],
    ]
    assert counter.add(True, at_floor=True) is SkipKind.COLLAPSE
    assert (counter.steps, counter.total, counter.streak) == (13, 7, 4)
    assert counter.by_kind == dict(calibration=2, ordinary=3, collapse=2)


def test_at_the_floor_the_first_skip_is_a_collapse():
    assert SkipCounter(patience=16).add(True, at_floor=True) is SkipKind.COLLAPSE


def test_share_is_of_the_latest_steps_only():
    counter = SkipCounter(patience=99, latest=10)
    feed(counter, "xxxxx.....")
    assert counter.share == 0.5
    feed(counter, "....")
    assert counter.share == pytest.approx(0.1)
    feed(counter, "." * 100)
    assert counter.share == 0.0


def test_state_goes_round_and_counting_goes_on():
    pattern = "xx..x.x.." * 150
    whole, first, second = (SkipCounter(patience=3, latest=50) for _ in range(3))
    feed(whole, pattern * 2)
    feed(first, pattern)
    second.load_state(first.state())
    feed(second, pattern)
    assert second.state() == whole.state()
    assert second.share == whole.share


def test_nan_in_the_forward_pass_is_no_calibration():
    counter = SkipCounter(patience=3)
    kinds = [counter.add(True, forward=i < 2) for i in range(2)]
    assert kinds == [SkipKind.FORWARD] * 2
    assert not counter.collapsed
    assert counter.add(True, forward=True) is SkipKind.FORWARD
    assert counter.collapsed  # the scale falls with each, whatever the reason
    counter.add(False)
    assert not counter.collapsed
    assert counter.add(True) is SkipKind.CALIBRATION
    assert counter.by_kind == dict(calibration=1, ordinary=0, collapse=0, forward=3)
