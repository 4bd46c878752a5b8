"""How far a command has come, on a terminal; elsewhere not a word."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Advance(Protocol):
    """Moves a bar on."""

    def __call__(self, steps: int = 1, what: str | None = None) -> None:
        """By so many steps; ``what`` is worked at from now on, if it is another."""


def _silent(steps: int = 1, what: str | None = None) -> None:
    pass


@contextmanager
def progress(what: str, total: int | None = None) -> Iterator[Advance]:
    """A bar that goes when the work is done, on a terminal's standard error.

    What is printed meanwhile would tear it: print before or after.

    Args:
        what: Is worked at.
        total: Steps of the whole; ``None`` where nobody knows.
    """
    if not sys.stderr.isatty():
        yield _silent
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:  # it comes with MMEngine, which may be what is missing
        yield _silent
        return
    columns = [TextColumn("{task.description}", markup=False), BarColumn()]
    columns += [TextColumn("{task.percentage:>3.0f}%"), TimeRemainingColumn()]
    with Progress(
        *columns[: 2 if total is None else 4],
        console=Console(stderr=True),
        transient=True,
        # Or what is printed to a pipe would go to the terminal.
        redirect_stdout=False,
        redirect_stderr=False,
    ) as bar:
        task = bar.add_task(what, total=total)

        def advance(steps: int = 1, what: str | None = None) -> None:
            bar.update(task, advance=steps, description=what)

        yield advance
