"""A piece of advice."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Advice:
    """One change to a config.

    Attributes:
        title: What to do.
        change: Lines to paste into the config.
        evidence: Numbers with their iterations.
    """

    title: str
    change: str
    evidence: list[str]
