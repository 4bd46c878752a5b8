"""Checks in processes of their own, each with a limit: none stops another."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gpu_check.rows import FAILED, Row

PATIENCE = 5.0  # seconds, with a process that is asked to end


@dataclass(frozen=True)
class Check:
    """One check.

    Args:
        name: In the table.
        module: With a function ``check(machine, place)`` that yields rows.
        limit: Seconds that it may take.
    """

    name: str
    module: str
    limit: float


def run_all(
    checks: Sequence[Check],
    place: Path,
    seconds: float,
    env: Mapping[str, str],
) -> Iterator[Row]:
    """Run them, one after the other.

    A kernel that fails on the device leaves a process that can do nothing more there,
    and only from outside can one that hangs be ended.

    Args:
        checks: In this order.
        place: A folder for logs and what they leave; each has one of its own in it.
        seconds: All of them together may take.
        env: For them.
    """
    end = time.monotonic() + seconds
    for check in checks:
        left = end - time.monotonic()
        if left <= 0:
            found = f"the {seconds:.0f} s for all checks were over"
            yield Row("not begun", found, FAILED, check=check.name)
            continue
        yield from run_one(replace(check, limit=min(check.limit, left)), place, env)


def run_one(check: Check, place: Path, env: Mapping[str, str]) -> Iterator[Row]:
    """The rows of a check, those from before its failure included."""
    folder = place / check.name
    folder.mkdir(parents=True, exist_ok=True)
    rows, log = folder / "rows.jsonl", folder / "log.txt"
    rows.write_text("")
    began = time.monotonic()
    command = [sys.executable, "-m", "gpu_check.child", check.module, str(folder)]
    with log.open("w") as stream:
        process = subprocess.Popen(
            command,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=dict(env),
            start_new_session=True,
        )
    why = ""
    try:
        status = process.wait(check.limit)
        if status:
            why = f"ended with status {status}: {last_line(log)}"
    except subprocess.TimeoutExpired:
        why = f"took more than {check.limit:.0f} s and was ended"
    finally:
        end_group(process)
    for line in rows.read_text().splitlines():
        yield Row(**json.loads(line) | dict(check=check.name))
    if why:
        yield Row("the check itself", f"{why} ({log})", FAILED, check=check.name)
    took = time.monotonic() - began
    print(f"[gpu_check] {check.name}: {why or 'done'}, {took:.0f} s", flush=True)


def end_group(process: subprocess.Popen[bytes]) -> None:
    """The process, and what it has started."""
    for number in (signal.SIGTERM, signal.SIGKILL):  # torchrun ends its own, if asked
        end = time.monotonic() + PATIENCE
        try:
            os.killpg(process.pid, number)
            while time.monotonic() < end:
                process.poll()
                os.killpg(process.pid, 0)
                time.sleep(0.05)
        except ProcessLookupError:
            break
    process.wait()


def last_line(log: Path) -> str:
    """Of a traceback what was raised."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line]
    raised = [line for line in lines if line[0].isalpha() and "Error" in line]
    # Of those who tell of another's error.
    other = ("torch.distributed", "subprocess.")
    raised = [line for line in raised if not line.startswith(other)] or raised
    return (raised or lines or ["it printed nothing"])[-1][:300]
