"""A sample of scripts/kill_test.py; its 200 kills take too long here."""

import os
import subprocess
import sys

from tests import helpers


def test_killed_ten_times_and_resumed_each_time():
    done = subprocess.run(
        [sys.executable, helpers.ROOT / "scripts/kill_test.py", "--kills", "10"],
        env=dict(os.environ, PYTHONPATH=str(helpers.ROOT)),
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    lines = done.stdout.splitlines()
    kills = [line for line in lines if line.startswith("kill ")]
    assert len(kills) == 10
    # It did train on, and was killed at both kinds of moments.
    assert any("while writing" in line for line in kills)
    assert any("at random" in line for line in kills)
    assert lines[-1].startswith("10 kills, ")
    assert lines[-1].split(", ")[2].startswith("finished")
