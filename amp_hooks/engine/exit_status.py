"""Whose doing it is that a program has ended with an exit status."""

from __future__ import annotations


def is_failure(code: object) -> bool:
    """Whether an exit status is that of a program that failed by itself.

    0 is that of one that is done, 128 and more that of a signal: a scheduler's.

    Args:
        code: As in ``SystemExit.code``: ``None``, a number, or what is to be printed.
    """
    return not (code is None or (isinstance(code, int) and not 0 < code < 128))


def from_text(text: str) -> object:
    """The code that ``str(SystemExit(code))`` was made of, as far as it matters."""
    try:
        return int(text) if text else None
    except ValueError:
        return text
