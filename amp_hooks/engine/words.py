"""Pieces of sentences for a person."""

from __future__ import annotations


def first_names(names: list[str], limit: int = 3) -> str:
    """The first of many names, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def count(n: int, what: str, plural: str = "s") -> str:
    """``3 rollbacks``, ``1 rollback``."""
    return f"{n} {what}{plural * (n != 1)}"
