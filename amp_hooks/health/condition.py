"""The three conditions of a run."""

from __future__ import annotations

from enum import IntEnum


class Condition(IntEnum):
    """How a run is; the numbers are those of the scalar ``amp/health``."""

    HEALTHY = 0
    WATCHED = 1
    ILL = 2
