"""A bar is for a person who waits, and nobody else."""

import os
import pty
import subprocess
import sys

import pytest

from tests import processes

WORK = """
import sys
from amp_hooks.engine.progress import progress
with progress("annotations", {total}) as advance:
    for _ in range(4):
        advance(10)
    advance(0, "what comes last")
    {fault}
print("the result")
"""


def work(total=40, fault="", before=""):
    return before + WORK.format(total=total, fault=fault)


def on_a_terminal(code):
    """What goes to a pipe, and to the terminal beside it."""
    ours, theirs = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            stderr=theirs,
            env=processes.environment(TERM="xterm"),
            timeout=60,
            check=False,
        )
        os.close(theirs)
        os.set_blocking(ours, False)
        try:
            shown = os.read(ours, 1 << 16)
        except OSError:  # nothing was written
            shown = b""
    finally:
        os.close(ours)
    return done.stdout.decode(), shown.decode()


def test_a_file_or_a_pipe_gets_none():
    done = processes.code(work())
    assert (done.stdout, done.stderr) == ("the result\n", "")


@pytest.mark.parametrize("total", [40, None])
def test_on_a_terminal(total):
    out, shown = on_a_terminal(work(total))
    assert out == "the result\n", "what is a pipe gets no bar"
    assert "annotations" in shown
    assert "what comes last" in shown
    assert ("100%" in shown) == (total is not None)
    assert shown.endswith("\x1b[2K"), "the last line is wiped"


def test_without_rich():
    out, shown = on_a_terminal(work(before="import sys; sys.modules['rich'] = None"))
    assert (out, shown) == ("the result\n", "")


def test_an_interrupt_leaves_no_bar():
    out, shown = on_a_terminal(work(fault="sys.exit(3)"))
    assert out == ""
    assert shown.endswith("\x1b[2K")
