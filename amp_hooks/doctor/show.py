"""The doctor's table on a terminal, and what it makes of it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .rows import BROKEN, FINDING, NOTE, OK, Row

_STYLE = {OK: "green", NOTE: "cyan", FINDING: "yellow", BROKEN: "bold red"}


def print_table(rows: Sequence[Row]) -> None:
    """Fitted to the terminal's width; the result stands in words beside its colour."""
    table = Table("", "found", "", box=SIMPLE_HEAD)
    for row in rows:
        table.add_row(
            Text(row.what), Text(row.found), Text(row.result, style=_STYLE[row.result])
        )
    Console().print(table)
