"""Snapshots by the iteration they were taken at: item == iteration."""

import pytest

from amp_hooks.rollback.ring import SnapshotRing


def ring(keep=2, probation=3, cooldown=10, proven=()):
    made = SnapshotRing(keep, probation, cooldown)
    for iteration in proven:
        made.add(iteration, iteration, proven=True)
    return made


def iters(made):
    return [entry.iter for entry in made.entries]


def test_nobody_goes_back_to_a_snapshot_on_probation():
    r = ring(proven=[0])
    r.add(5, 5)
    assert r.on_probation
    assert [r.healthy(6), r.healthy(7)] == [[], []]
    assert r.go_back(8).iter == 0
    assert iters(r) == [0]  # what was on probation carried the disease


def test_healthy_iterations_prove_it():
    r = ring(proven=[0])
    r.add(5, 5)
    for i in (5, 6):
        assert r.healthy(i) == []
    (proven,) = r.healthy(7)
    assert proven.iter == 5
    assert r.healthy(8) == []
    assert not r.on_probation
    assert r.go_back(9).iter == 5


def test_in_doubt_probation_begins_anew():
    r = ring(probation=2, proven=[0])
    r.add(5, 5)
    doubts = iter([True, True, False])
    proven = [r.healthy(5 + i, in_doubt=lambda: next(doubts)) for i in range(6)]
    assert proven[:5] == [[]] * 5
    assert [entry.iter for entry in proven[5]] == [5]


def test_doubt_ends_one_day():
    r = ring(probation=2, proven=[0])
    r.add(5, 5)
    proven = [r.healthy(5 + i, in_doubt=lambda: True) for i in range(20)]
    assert proven[:19] == [[]] * 19
    assert [entry.iter for entry in proven[19]] == [5]
    assert iters(r) == [0, 5]


def test_without_probation_it_counts_at_once():
    r = ring(probation=0, proven=[0])
    assert r.add(4, 4).left == 0
    assert r.healthy(4) == []
    assert r.go_back(5).iter == 4


def test_keeps_so_many_that_count_and_one_more():
    r = ring(keep=2, proven=[0, 5, 10])
    assert iters(r) == [0, 10]
    assert r.reusable == 5
    r.add(15, 15)
    assert iters(r) == [0, 10, 15]
    r.healthy(17, 3)
    assert iters(r) == [10, 15]
    assert r.reusable == 0


@pytest.mark.parametrize("keep", [1, 2, 3, 4, 6])
def test_ages_double(keep):
    """In intervals: at most 2, 4, 8, ... and always so many, and the newest."""
    r = ring(keep=keep, proven=[0])
    for i in range(1, 200):
        r.add(i, i, proven=True)
        ages = [i - entry.iter for entry in reversed(r.entries)]
        assert len(ages) == min(keep, i + 1)
        assert ages[0] == 0
        if i >= 2 ** len(ages):
            assert all(
                2 ** (k - 1) <= age < 2 ** (k + 1) for k, age in enumerate(ages) if k
            )


def test_goes_back_to_before_the_onset():
    """What shows in iteration 10 is the work of the one before, or of earlier ones."""
    for before, target in ((11, 10), (10, 5), (6, 5), (5, 0), (0, 0)):
        r = ring(keep=3, proven=[0, 5, 10])
        assert r.go_back(12, before).iter == target
        assert iters(r)[-1] == target


def test_within_the_cooldown_it_is_the_older_one_of_both():
    r = ring(keep=3, proven=[0, 5, 10])
    assert r.go_back(12, before=11).iter == 10
    assert r.go_back(13, before=13).iter == 5


def test_no_run_that_is_ill_proves_a_snapshot():
    r = ring(probation=2, proven=[0])
    r.add(5, 5)
    assert [r.healthy(i, ill=lambda: True) for i in range(5, 45)] == [[]] * 40
    assert [[e.iter for e in r.healthy(i)] for i in (45, 46)] == [[], [5]]


@pytest.mark.parametrize(("second", "target"), [(22, 5), (32, 5), (33, 10)])
def test_within_the_cooldown_an_older_one(second, target):
    r = ring(keep=3, proven=[0, 5, 10])
    assert r.go_back(22).iter == 10
    assert r.go_back(second).iter == target


def test_a_snapshot_taken_within_the_cooldown_is_passed_over():
    r = ring(keep=3, probation=0, proven=[0, 5])
    assert r.go_back(7).iter == 5
    r.add(8, 8)
    assert r.go_back(9).iter == 0
    assert iters(r) == [0]


def test_the_next_target_stays_until_the_cooldown_is_over():
    """The next snapshot is proven before; with ``keep=2`` it would push out the 5."""
    r = ring(keep=2, probation=3, cooldown=10, proven=[5, 10])
    assert r.go_back(12).iter == 10
    r.add(15, 15)
    r.healthy(18, 3)
    assert iters(r) == [5, 15]
    assert r.go_back(21).iter == 5

    r = ring(keep=2, probation=3, cooldown=10, proven=[5, 10])
    r.go_back(12)
    r.add(15, 15)
    r.healthy(18, 3)
    r.add(20, 20)
    r.healthy(23, 3)  # it is over
    assert iters(r) == [15, 20]


def test_the_oldest_stays_whatever_happens():
    r = ring(proven=[0])
    assert [r.go_back(i).iter for i in (3, 4, 5)] == [0, 0, 0]


def test_nothing_to_go_back_to():
    r = ring()
    assert r.go_back(1) is None
    r.add(1, 1)
    assert r.go_back(2) is None
