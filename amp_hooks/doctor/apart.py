"""Checks in a process of their own: one that dies or hangs is a row as well."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path

from .checks import Check
from .rows import NOTE, Row

# With this one's path: `-m` would put the present folder before what is installed.
_CHILD = """
import json, os, sys
path, checks, out = map(json.loads, sys.argv[1:])
sys.path[:] = path
from amp_hooks.doctor.checks import Check
from amp_hooks.doctor.child import main
main([Check(*each) for each in checks], out)
os._exit(0)  # a library that fails at the exit has done no harm
"""
_LOOK_EVERY = 0.1  # seconds


def run_all(
    checks: Sequence[Check], limit: float, tell: Callable[[str], object]
) -> Iterator[Row]:
    """The rows of all checks.

    Importing torch takes longest, so one process runs them as long as all is well.

    Args:
        checks: In this order.
        limit: Seconds that each may take, with its imports.
        tell: Is called with what is looked at.
    """
    rest = list(checks)
    if rest:
        tell(rest[0].what)
    while rest:
        if missing := [name for name in rest[0].needs if find_spec(name) is None]:
            found = f"not looked at, for want of {' and '.join(missing)}"
            yield Row(_next(rest, tell).what, found, NOTE)
            continue
        begun = len(rest)
        yield from _run(rest, limit, tell)
        if len(rest) == begun:  # it must come to an end
            raise RuntimeError(f"the process for {rest[0].module} ended without a word")


def _run(
    rest: list[Check], limit: float, tell: Callable[[str], object]
) -> Iterator[Row]:
    """Run them until the process ends; those that are done are taken out."""
    ready = list(takewhile(lambda check: all(find_spec(n) for n in check.needs), rest))
    with tempfile.TemporaryDirectory() as folder:
        out, log = Path(folder, "rows"), Path(folder, "log")
        arguments = [sys.path, ready, str(out)]
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [sys.executable, "-c", _CHILD, *map(json.dumps, arguments)],
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        read, why, end = 0, "", time.monotonic() + limit
        try:
            while True:
                ended = process.poll() is not None
                lines = out.read_text("utf-8").split("\n")[:-1] if out.exists() else []
                for line in lines[read:]:
                    row = json.loads(line)
                    if row is not None:
                        yield Row(**row)
                        continue
                    _next(rest, tell)
                    end = time.monotonic() + limit
                read = len(lines)
                if ended:
                    break
                if time.monotonic() > end:
                    why = f"took more than {limit:.0f} s and was ended"
                    break
                time.sleep(_LOOK_EVERY)
        finally:
            _end(process)
        if not why and process.returncode:
            why = _death(process.returncode, log)
        if why and rest:
            check = _next(rest, tell)
            yield Row(check.what, why, check.failed, check.remedy)


def _next(rest: list[Check], tell: Callable[[str], object]) -> Check:
    """Take out the one that is done, and tell of the one that follows."""
    done = rest.pop(0)
    if rest:
        tell(rest[0].what)
    return done


def _death(status: int, log: Path) -> str:
    """What ended it, and the last that it said."""
    lines = log.read_text("utf-8", errors="replace").split("\n")
    said = next((line for line in reversed(lines) if line.strip()), "no word")[:300]
    if status > 0:
        return f"its process ended with status {status}: {said}"
    return f"its process was ended by {signal.Signals(-status).name}: {said}"


def _end(process: subprocess.Popen[bytes]) -> None:
    """The process, if it still runs, and what it has started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
