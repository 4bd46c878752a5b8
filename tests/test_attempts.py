import pytest

from amp_hooks.rollback_policy import Attempts


def made(*done, total=10, recent=2, iters=100):
    return Attempts(total, recent, iters, [list(one) for one in done])


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
    attempts = made(*[(at, 0, "RAISED") for at in done], total=3)
    assert attempts.used_up(now) == limit


def test_none_allowed():
    assert made(total=0).used_up(1) == "max_rollbacks=0"
    assert made(recent=0).used_up(1).startswith("max_recent=0")


def test_the_longer_list_counts(tmp_path):
    path = str(tmp_path / "attempts.json")
    made((5, 0, "RAISED"), (9, 4, "STATE_NONFINITE")).save(path)
    fewer = made((5, 0, "RAISED"))
    fewer.merge(path)
    assert fewer.done == [[5, 0, "RAISED"], [9, 4, "STATE_NONFINITE"]]
    more = made(*[(i, 0, "RAISED") for i in range(3)])
    more.merge(path)
    assert len(more.done) == 3


@pytest.mark.parametrize("text", [None, "", "[", "[[1, 2]]", '{"a": 1}', "\0\0"])
def test_a_damaged_file_counts_nothing(tmp_path, text):
    path = tmp_path / "attempts.json"
    if text is not None:
        path.write_text(text)
    attempts = made((5, 0, "RAISED"))
    attempts.merge(str(path))
    assert attempts.done == [[5, 0, "RAISED"]]


def test_told():
    text = made((5, 0, "RAISED"), (9, 4, "STATE_NONFINITE")).told()
    assert text == "at 5 to 0 (RAISED); at 9 to 4 (STATE_NONFINITE)"
