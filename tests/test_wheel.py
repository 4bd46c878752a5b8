"""What a user installs is complete."""

import sys

import pytest

from tests import helpers, processes


@pytest.mark.slow
def test_the_wheel_alone_trains_outside_the_repository():
    program = helpers.ROOT / "scripts/check_wheel.sh"
    done = processes.run("bash", program, timeout=300, PYTHON=sys.executable)
    assert "the wheel works: amp_hooks-" in done.stdout
