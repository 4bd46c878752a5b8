"""How often a run may go back."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from .core.files import write_text


@dataclass
class Attempts:
    """Counts rollbacks. The count survives a kill at any moment, so every run ends.

    Args:
        total: Allowed in the whole run.
        recent: Allowed within ``iters`` iterations.
        iters: What counts as recent.

    Attributes:
        done: Each rollback so far, as ``[iteration, target, verdict]``.
    """

    total: int
    recent: int
    iters: int
    done: list[list[Any]] = field(default_factory=list)

    def used_up(self, now: int) -> str:
        """Which limit forbids another rollback at iteration ``now``, or ''."""
        if len(self.done) >= self.total:
            return f"max_rollbacks={self.total}"
        recent = [at for at, *_ in self.done if now - at < self.iters]
        if len(recent) >= self.recent:
            return f"max_recent={self.recent} in recent_iters={self.iters}"
        return ""

    def add(self, now: int, target: int, verdict: str) -> None:
        """Another one."""
        self.done.append([now, target, verdict])

    def told(self) -> str:
        """All of them in words."""
        return "; ".join(f"at {i} to {to} ({why})" for i, to, why in self.done)

    def save(self, path: str) -> None:
        """Write the list to a small file, at once and atomically.

        Raises:
            OSError: If it cannot be written.
        """
        write_text(path, json.dumps(self.done))

    def merge(self, path: str) -> None:
        """Take the list from a file, if more rollbacks are known there.

        A missing or damaged file is as good as none: the checkpoint has a list too.
        """
        try:
            with open(path, encoding="utf-8") as f:
                known = [[int(i), int(to), str(why)] for i, to, why in json.load(f)]
        except (OSError, TypeError, ValueError):
            return
        if len(known) > len(self.done):
            self.done = known
