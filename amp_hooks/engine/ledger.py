"""An append-only file of events, one JSON object a line."""

from __future__ import annotations

import json
import math
import os
from typing import Any

# Their number is bounded by other means, and a report cannot do without them.
_ALWAYS = (
    "start",
    "diverged",
    "well",
    "rollback",
    "fallback",
    "failure",
    "abort",
    "end",
)


def strict_json(value: Any) -> Any:
    """Replace floats that JSON cannot hold by the strings 'nan', 'inf' and '-inf'."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(k): strict_json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict_json(v) for v in value]
    return value


class Ledger:
    """Writes ``stability.jsonl``; opened with the first event, flushed with each.

    Args:
        path: The file. Its directory is made if it is missing.
        max_events: After so many lines one line says so, and from then on only the few
            events are written that decide on the run, so that one which overflows for
            days does not fill the disk.
    """

    def __init__(self, path: str, max_events: int = 100_000) -> None:
        self.path = path
        self.max_events = max_events
        self._written = 0

    def write(self, iteration: int, event: str, verdict: str, **fields: Any) -> None:
        """Append one line.

        Raises:
            OSError: If it cannot be written.
        """
        line = dict(iter=iteration, event=event, verdict=verdict, **fields)
        if event not in _ALWAYS:
            if self._written > self.max_events:
                return
            if self._written == self.max_events:
                line = dict(iter=iteration, event="truncated", verdict=verdict)
                line["max_events"] = self.max_events
            self._written += 1
        os.makedirs(os.path.dirname(self.path) or ".", exist_ok=True)
        text = json.dumps(strict_json(line), allow_nan=False)
        with open(self.path, "a", encoding="utf-8") as f:
            f.write(text + "\n")
