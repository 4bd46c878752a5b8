import pytest

from amp_hooks.rollback.policy import BadStreak


def first_due(pattern, **options):
    streak = BadStreak(**{"patience": 3, "window": 20, "share": 0.35, **options})
    for i, letter in enumerate(pattern):
        streak.add(letter == "x")
        if streak.too_many:
            return i
    return None


@pytest.mark.parametrize(
    ("pattern", "due"),
    [
        ("xxx", 2),
        ("xx.xx.xx.x", 9),  # 7 of the last 20, never 3 in a row
        ("x.x.x.x.x.x.x.", 12),
        ("x....." * 10, None),
        ("xx......" * 6, None),  # at most 6 of any 20
        ("........", None),
        ("x", None),  # one of one is no share of the last twenty
    ],
)
def test_in_a_row_or_of_the_last(pattern, due):
    assert first_due(pattern) == due


def test_a_window_of_one():
    assert first_due("x", window=1, share=1.0, patience=9) == 0


def test_state_survives():
    streak = BadStreak(3, 20, 0.35)
    for bad in (True, False, True, True):
        streak.add(bad)
    other = BadStreak(3, 20, 0.35)
    other.load_state(streak.state())
    assert other.length == 2
    assert not other.too_many
    other.add(True)
    assert other.too_many


def test_clear():
    streak = BadStreak(1, 20, 0.05)
    streak.add(True)
    assert streak.too_many
    streak.clear()
    assert not streak.too_many
