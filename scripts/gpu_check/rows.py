"""What a check has found: rows of a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from amp_hooks.engine.command_line import markdown_table

OK, FAILED, UNKNOWN, MEASURED = "ok", "FAILED", "cannot tell", "measured"


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Args:
        what: Was looked at.
        found: In words, with the numbers.
        result: OK, FAILED, UNKNOWN (this machine cannot show it) or MEASURED (a number
            that nothing is asked of).
        numbers: The same for programs.
        check: That found it.
    """

    what: str
    found: str
    result: str = MEASURED
    numbers: dict[str, Any] = field(default_factory=dict)
    check: str = ""

    def to_dict(self) -> dict[str, Any]:
        """For JSON, which has no NaN: that is a string."""
        return _plain(asdict(self))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    bare = isinstance(value, float) and not math.isfinite(value)
    return str(value) if bare else value


def judged(what: str, found: str, good: bool, **numbers: Any) -> Row:
    """A row that is right or wrong."""
    return Row(what, found, OK if good else FAILED, numbers)


def any_failed(rows: Sequence[Row]) -> bool:
    """Whether one of them is wrong."""
    return any(row.result == FAILED for row in rows)


def table(rows: Sequence[Row]) -> str:
    """All of them, in Markdown; the name of a check stands beside its first."""
    lines, before = [["check", "what", "found", ""]], ""
    for row in rows:
        name, before = ("" if row.check == before else row.check), row.check
        found = row.found.replace("|", "/").replace("\n", " ")
        lines.append([name, row.what, found, row.result])
    return markdown_table(lines)
