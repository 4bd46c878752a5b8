"""What a user installs is complete."""

import os
import subprocess
import sys

import pytest

from tests import helpers


@pytest.mark.slow
def test_the_wheel_alone_trains_outside_the_repository():
    done = subprocess.run(
        ["bash", str(helpers.ROOT / "scripts/check_wheel.sh")],
        env=dict(os.environ, PYTHON=sys.executable),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the wheel works: amp_hooks-" in done.stdout
