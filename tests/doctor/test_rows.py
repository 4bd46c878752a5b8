import pytest

from amp_hooks.doctor.rows import (
    BROKEN,
    FINDING,
    NOTE,
    OK,
    Row,
    exit_status,
    plain_table,
    what_to_do,
)


@pytest.mark.parametrize(
    ("results", "status"),
    [([], 0), ([OK, NOTE], 0), ([OK, FINDING, NOTE], 1), ([BROKEN, FINDING, OK], 2)],
)
def test_the_worst_row_decides(results, status):
    assert exit_status(Row("x", "y", result) for result in results) == status


def test_the_worst_is_cured_first():
    rows = [Row("a", "", NOTE, "1."), Row("b", "", OK), Row("c", "", BROKEN, "2.")]
    assert what_to_do(rows) == ["c (does not work): 2.", "a (note): 1."]


def test_a_message_of_several_lines_stays_in_its_cell():
    table = plain_table([Row("mmcv", "OSError: a\n  b | c", BROKEN)])
    assert table.splitlines()[2] == "| mmcv | OSError: a b / c | does not work |"
