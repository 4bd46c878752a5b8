"""A check that raises, dies or hangs is a row, and stops no other."""

import pytest

from amp_hooks.doctor.apart import run_all
from amp_hooks.doctor.checks import Check
from amp_hooks.doctor.rows import FINDING, NOTE, Row

CODE = {
    "well": "yield Row('pid', str(os.getpid()))",
    "broken": "yield Row('broken', str(os.getpid()), 'does not work')",
    "raising": "yield Row('before', 'it raised'); raise OSError('no such card')",
    "dying": "os.kill(os.getpid(), signal.SIGSEGV); yield",
    "leaving": "print('the last word'); sys.exit(3); yield",
    "late": "atexit.register(os.abort); yield Row('pid', '1', 'does not work')",
    "hanging": "time.sleep(1000); yield",
    "absent": "yield Row('absent', 'and looked at')",
}


@pytest.fixture
def check(tmp_path, monkeypatch):
    for name, code in CODE.items():
        (tmp_path / f"check_{name}.py").write_text(
            "import atexit, os, signal, sys, time\n"
            "from amp_hooks.doctor.rows import Row\n"
            f"def check():\n    {code}\n"
        )
    monkeypatch.syspath_prepend(str(tmp_path))

    def run(*names, limit=60.0):
        checks = [
            Check(
                f"check_{name}",
                name,
                ("json", "no_such_package") if name == "absent" else ("json",),
                FINDING,
                "Mend it.",
            )
            for name in names
        ]
        told = []
        rows = list(run_all(checks, limit, told.append))
        return rows, told

    return run


def test_one_process_runs_what_is_well_and_another_what_follows_a_fault(check):
    rows, told = check("well", "well", "broken", "well")
    first, second, broken, last = (row.found for row in rows)
    assert first == second == broken
    assert last != first
    assert told == ["well", "well", "broken", "well"]


@pytest.mark.parametrize(
    ("name", "limit", "words"),
    [
        ("raising", 60.0, "OSError: no such card"),
        ("dying", 60.0, "its process was ended by SIGSEGV: no word"),
        ("leaving", 60.0, "its process ended with status 3: the last word"),
        ("hanging", 3.0, "took more than 3 s and was ended"),
    ],
)
def test_what_fails_is_a_row(check, name, limit, words):
    rows, _ = check("well", name, "well", limit=limit)
    before, *own, after = rows
    assert own[-1] == Row(name, words, FINDING, "Mend it.")
    assert [row.what for row in own[:-1]] == ["before"] * (name == "raising")
    assert before.what == after.what == "pid"


def test_an_abort_at_the_exit_is_no_fault_of_what_follows(check):
    rows, _ = check("late", "well")
    assert [row.what for row in rows] == ["pid", "pid"]


def test_without_what_it_needs_it_is_not_looked_at(check):
    """And has its place in the table."""
    (before, row, after), told = check("well", "absent", "well")
    assert row == Row("absent", "not looked at, for want of no_such_package", NOTE)
    assert before.what == after.what == "pid"
    assert told == ["well", "absent", "well"]


def test_the_present_folder_hides_nothing_that_is_installed(
    check, tmp_path, monkeypatch
):
    """As `python -m` would have it; the command itself is not called that way."""
    (tmp_path / "here").mkdir()
    (tmp_path / "here/check_well.py").write_text("raise SystemExit(1)")
    monkeypatch.chdir(tmp_path / "here")
    (row,), _ = check("well")
    assert row.what == "pid"
