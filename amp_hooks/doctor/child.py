"""Runs checks in a process that may die of them; :mod:`.apart` starts it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import import_module
from typing import TextIO

from .checks import Check
from .rows import BROKEN, Row


def main(checks: Sequence[Check], path: str) -> None:
    """Run these checks and write a line for each row, and ``null`` at the end of each.

    After what does not work this process may be in no state for more, as after a
    kernel that failed on the card: then it ends, and another goes on.
    """
    with open(path, "w", encoding="utf-8") as out:
        for check in checks:
            if not _run(check, out):
                return


def _run(check: Check, out: TextIO) -> bool:
    good = True
    try:
        module = import_module(check.module)
        for row in module.check():
            good &= row.result != BROKEN
            _write(out, row._asdict())
    except Exception as e:
        good = False
        found = f"{type(e).__name__}: {e}"
        _write(out, Row(check.what, found, check.failed, check.remedy)._asdict())
    _write(out, None)
    return good


def _write(out: TextIO, line: object) -> None:
    # At once: what follows may end the process.
    out.write(json.dumps(line) + "\n")
    out.flush()
