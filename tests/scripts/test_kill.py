"""A sample of scripts/kill_test.py; its 200 kills take too long here."""

import pytest

from tests import processes


@pytest.mark.slow
def test_killed_five_times_and_resumed_each_time():
    done = processes.script("kill_test.py", "--kills", "5", timeout=900)
    lines = done.stdout.splitlines()
    kills = [line for line in lines if line.startswith("kill ")]
    assert len(kills) == 5
    # It did train on, and was killed at both kinds of moments.
    assert any("while writing" in line for line in kills)
    assert any("at random" in line for line in kills)
    assert lines[-1].startswith("5 kills, ")
    assert lines[-1].split(", ")[2].startswith("finished")
