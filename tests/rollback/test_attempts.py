import pytest

from amp_hooks.rollback.attempts import Attempts


def made(*done, total=10, recent=2, iters=100):
    attempts = Attempts(total, recent, iters)
    attempts.done = [list(one) for one in done]
    return attempts


@pytest.mark.parametrize(
    ("done", "now", "limit"),
    [
        ([], 5, ""),
        ([5], 6, ""),
        ([5, 50], 60, "max_recent=2 in recent_iters=100"),
        ([5, 50], 104, "max_recent=2 in recent_iters=100"),
        ([5, 50], 105, ""),
        ([5, 150, 300], 500, "max_rollbacks=3"),
    ],
)
def test_limits(done, now, limit):
    attempts = made(*[(at, 0, "RAISED", 0) for at in done], total=3)
    assert attempts.used_up(now) == limit


def test_none_allowed():
    assert made(total=0).used_up(1) == "max_rollbacks=0"
    assert made(recent=0).used_up(1).startswith("max_recent=0")


def test_each_is_in_the_file_at_once_and_the_longer_list_counts(tmp_path):
    first = made()
    first.open(str(tmp_path), resumed=False)
    first.add(5, 0, "RAISED", False)
    first.add(9, 4, "STATE_NONFINITE", False)
    fewer = made((5, 0, "RAISED", 0))
    fewer.open(str(tmp_path), resumed=True)
    assert fewer.done == [[5, 0, "RAISED", 0], [9, 4, "STATE_NONFINITE", 0]]
    more = made(*[(i, 0, "RAISED", 0) for i in range(3)])
    more.open(str(tmp_path), resumed=True)
    assert len(more.done) == 3


def test_a_run_begun_anew_does_not_count_those_of_another(tmp_path):
    first = made()
    first.open(str(tmp_path), resumed=False)
    first.add(5, 0, "RAISED", False)
    made().open(str(tmp_path), resumed=False)
    resumed = made()
    resumed.open(str(tmp_path), resumed=True)
    assert resumed.done == []


@pytest.mark.parametrize("text", [None, "", "[", "[[1, 2]]", '{"a": 1}', "\0\0"])
def test_a_damaged_file_counts_nothing(tmp_path, text):
    if text is not None:
        (tmp_path / "attempts.json").write_text(text)
    attempts = made((5, 0, "RAISED", 0))
    attempts.open(str(tmp_path), resumed=True)
    assert attempts.done == [[5, 0, "RAISED", 0]]


def test_a_disk_that_refuses_costs_no_run(tmp_path):
    attempts = made()
    attempts.open(str(tmp_path / "missing"), resumed=False)
    attempts.add(5, 0, "RAISED", False)
    assert len(attempts.done) == 1


def test_since_and_summary():
    attempts = made((5, 0, "RAISED", 0), (9, 4, "STATE_NONFINITE", 0))
    assert [attempts.since(i) for i in (5, 6, 9, 10)] == [2, 1, 1, 0]
    assert attempts.summary() == "at 5 to 0 (RAISED); at 9 to 4 (STATE_NONFINITE)"


def test_last_resorts_are_counted_too():
    attempts = made((5, 0, "RAISED", 0), (9, 0, "RAISED", 1))
    assert attempts.may_have_extra
    attempts.done.append([12, 0, "RAISED", 1])
    assert not attempts.may_have_extra


def test_both_limits_are_told(tmp_path):
    """The run may end by either: 3 of 10 was the last one, with 3 of 3 used up."""
    attempts = Attempts(total=10, recent=3, iters=5000)
    attempts.open(str(tmp_path), resumed=False)
    for at in (10, 9000, 9100):
        attempts.add(at, at - 5, "DIVERGED", False)
    assert attempts.counted(9100) == (
        "rollback 3 of 10, 2 of 3 within 5000 iterations,"
    )
    attempts.add(9200, 9000, "DIVERGED", True)
    assert "rollback 4, beyond the limits" in attempts.counted(9200)
