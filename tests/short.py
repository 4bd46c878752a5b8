"""Which tests `scripts/test.sh` leaves out, unless it is called with --all.

All of them take 50 minutes on 2 cores. The short suite leaves out what is marked
``long``, and, of a test with several parameters, all slow ones but the quickest.
What each took is in tests/durations.json; to write it anew, on a quiet machine:

    bash scripts/test.sh --all --junit-xml=all.xml && python -m tests.short all.xml
"""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from pathlib import Path

FILE = Path(__file__).with_name("durations.json")
SLOW = 0.8  # seconds


def function(name: str) -> str:
    """A test without its parameters."""
    return name.partition("[")[0]


def left_out(names: Iterable[str], seconds: dict[str, float]) -> set[str]:
    """Slow variants of tests of which a quicker one is among ``names``.

    Args:
        names: Tests, as pytest names them.
        seconds: What slow ones took; who is not in it was quick, or is new.
    """
    every = list(names)
    quickest: dict[str, str] = {}
    for name in sorted(every, key=lambda name: seconds.get(name, 0.0)):
        quickest.setdefault(function(name), name)
    return {n for n in every if n in seconds and quickest[function(n)] != n}


def read() -> dict[str, float]:
    """What slow tests took."""
    known: dict[str, float] = json.loads(FILE.read_text())
    return known


def main() -> None:
    """Of a JUnit file of pytest."""
    took = {
        f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}": float(
            case.get("time", 0)
        )
        for case in ET.parse(sys.argv[1]).iter("testcase")
    }
    slow = {n: round(t, 1) for n, t in took.items() if t >= SLOW and "[" in n}
    FILE.write_text(json.dumps(dict(sorted(slow.items())), indent=0) + "\n")


if __name__ == "__main__":
    main()
