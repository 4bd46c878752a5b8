"""When a learning rate is not to blame."""

from amp_hooks.rollback.lr_policy import LRTrust


def after(rates, count=3):
    trust = LRTrust(count)
    for lr in rates:
        trust.healthy(None if lr is None else [lr, 0.5], 1)
    return trust


def test_it_must_have_gone_well_at_that_learning_rate():
    assert not after([0.1, 0.1, 0.1]).cleared  # the first one reached it
    assert after([0.1, 0.1, 0.1, 0.1]).cleared
    assert after([0.1, 0.05, 0.03, 0.01]).cleared  # as low ones do
    assert not after([0.1, 0.1, 0.1, 0.1, 0.2]).cleared
    assert not after([0.01 * i for i in range(100)]).cleared  # a warm-up


def test_a_restart_of_the_schedule_is_a_rise():
    assert not after([0.1] * 9 + [0.01] * 9 + [0.1]).cleared
    assert after([0.1] * 4 + [0.1 + 1e-17] * 4 + [0.1] * 4).cleared


def test_any_group_may_rise():
    trust = LRTrust(3)
    for i in range(9):
        trust.healthy([0.1, 0.001 * i], 1)
    assert not trust.cleared


def test_after_a_fault_it_begins_anew():
    trust = after([0.1] * 9)
    trust.begin_anew()
    assert not trust.cleared
    for _ in range(4):
        trust.healthy([0.01], 1)
    assert trust.cleared


def test_an_unknown_learning_rate_is_never_cleared():
    assert not after([None] * 9).cleared


def test_none_is_never():
    assert not after([0.1] * 9, None).cleared


def test_its_state():
    trust = after([0.1] * 3)
    other = LRTrust(3)
    other.load_state(trust.state())
    other.healthy([0.1, 0.5], 1)
    assert other.cleared
