"""What the doctor has found: rows of a table, and the exit status they make."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from ..engine.command_line import FOUND, GOOD, LOST, markdown_table

OK, NOTE, FINDING, BROKEN = "ok", "note", "finding", "does not work"
# The worst of them decides.
STATUS = {OK: GOOD, NOTE: GOOD, FINDING: FOUND, BROKEN: LOST}


class Row(NamedTuple):
    """One line of the table.

    Attributes:
        what: Was looked at.
        found: In words, with the numbers.
        result: OK; NOTE, worth knowing and no fault; FINDING, which hurts; or BROKEN,
            without which training does not work.
        remedy: What to do about a finding, or what a note is good for.
    """

    what: str
    found: str
    result: str = OK
    remedy: str = ""


def exit_status(rows: Iterable[Row]) -> int:
    """Of the command."""
    return max((STATUS[row.result] for row in rows), default=GOOD)


def plain_table(rows: Iterable[Row]) -> str:
    """All rows as Markdown, for a file, a pipe or an issue."""
    lines = [["", "found", ""]]
    for row in rows:
        cells = (row.what, row.found, row.result)
        lines.append([" ".join(c.replace("|", "/").split()) for c in cells])
    return markdown_table(lines)


def what_to_do(rows: Iterable[Row]) -> list[str]:
    """A line for each remedy, the worst first."""
    told = [row for row in rows if row.remedy]
    told.sort(key=lambda row: list(STATUS).index(row.result), reverse=True)
    return [f"{row.what} ({row.result}): {row.remedy}" for row in told]
