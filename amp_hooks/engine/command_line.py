"""What our command lines have in common."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

# What was found: nothing, something, or what cannot go on like this.
GOOD, FOUND, LOST = 0, 1, 2
# As in sysexits.h. What is lower says what was found, so no failure may use it.
USAGE, DATA, NO_INPUT, FAILED, CANNOT_CREATE = 64, 65, 66, 70, 73
STATUSES = {
    GOOD: "good: healthy, nothing found, finite, or training works",
    FOUND: "findings: recovered, something found, not finite, or something hurts",
    LOST: "lost: the run, or what training needs does not work",
    USAGE: "wrong arguments",
    DATA: "the file is not of the kind that was asked for",
    NO_INPUT: "what is to be read is not there, or cannot be read",
    FAILED: "the command itself failed",
    CANNOT_CREATE: "a file cannot be written",
}


class Parser(argparse.ArgumentParser):
    """Exits with 64 where argparse would with 2, which may have another meaning."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and exit."""
        self.print_usage(sys.stderr)
        self.exit(USAGE, f"{self.prog}: error: {message}\n")


class UserError(Exception):
    """What the user can mend: a message, and the exit status."""

    def __init__(self, message: str, status: int = NO_INPUT) -> None:
        super().__init__(message)
        self.status = status


def or_failed(check: Callable[[], int]) -> int:
    """The exit status of a check, of a UserError, or FAILED, with the traceback.

    Python's own exit status, 1, would be taken for what was found.
    """
    try:
        return check()
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return e.status
    except Exception:
        traceback.print_exc()
        return FAILED


def print_out(text: str) -> None:
    """Write to the standard output, which may be a pipe that has been closed."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader, head say, has seen enough; Python must not complain at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def markdown_table(table: list[list[str]]) -> str:
    """Align the columns; the result is also valid Markdown."""
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths)) + " |"
        for row in table
    ]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)
