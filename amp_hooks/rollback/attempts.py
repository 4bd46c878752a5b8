"""How often a run may go back."""

from __future__ import annotations

import json
import os.path as osp
from typing import Any

import mmengine.dist as dist

from ..engine.files import write_text
from ..engine.messages import warn
from .disk import ATTEMPTS


class Attempts:
    """Counts rollbacks. The count survives a kill at any moment, so every run ends.

    Args:
        total: Allowed in the whole run.
        recent: Allowed within ``iters`` iterations.
        iters: What counts as recent.

    Attributes:
        total: Allowed in the whole run.
        done: Each rollback so far, as ``[iteration, target, verdict, extra]``; extra is
            1 if the limits forbade it and another precision was tried, else 0.
    """

    def __init__(self, total: int, recent: int, iters: int) -> None:
        self.total, self._recent, self._iters = total, recent, iters
        self.done: list[list[Any]] = []
        self._file = ""

    def used_up(self, now: int) -> str:
        """Which limit forbids another rollback at iteration ``now``, or ''."""
        if len(self.done) >= self.total:
            return f"max_rollbacks={self.total}"
        recent = [at for at, *_ in self.done if now - at < self._iters]
        if len(recent) >= self._recent:
            return f"max_recent={self._recent} in recent_iters={self._iters}"
        return ""

    def counted(self, now: int) -> str:
        """The last one in words, by both limits: either of them may end the run."""
        number = len(self.done)
        recent = sum(now - at < self._iters for at, *_ in self.done)
        if self.done and self.done[-1][3]:
            return f"rollback {number}, beyond the limits in another precision,"
        return (
            f"rollback {number} of {self.total}, {recent} of {self._recent} within "
            f"{self._iters} iterations,"
        )

    def open(self, folder: str, resumed: bool) -> None:
        """Keep them in a small file, written at once: a checkpoint takes its time.

        Args:
            folder: Where to.
            resumed: Go on counting from there, if more are known there. A missing or
                damaged file is as good as none: the checkpoint has a list too.
        """
        self._file = osp.join(folder, ATTEMPTS)
        if not resumed:
            self._save()  # there may be one of an earlier run
            return
        known = [_read(self._file)]
        dist.broadcast_object_list(known)
        if len(known[0]) > len(self.done):
            self.done = known[0]

    @property
    def may_have_extra(self) -> bool:
        """Whether a last resort may be tried: BF16 and FP32 at most."""
        return sum(extra for *_, extra in self.done) < 2

    def add(self, now: int, target: int, verdict: str, extra: bool) -> None:
        """Another one."""
        self.done.append([now, target, verdict, int(extra)])
        self._save()

    def forget_last(self) -> None:
        """There was no need for it."""
        self.done.pop()
        self._save()

    def since(self, iteration: int) -> int:
        """How many there were in that iteration and later."""
        return sum(at >= iteration for at, *_ in self.done)

    @property
    def number(self) -> int:
        """How many there were."""
        return len(self.done)

    def summary(self) -> str:
        """All of them in words."""
        return "; ".join(f"at {i} to {to} ({why})" for i, to, why, _ in self.done)

    def _save(self) -> None:
        if not dist.is_main_process():
            return
        try:
            write_text(self._file, json.dumps(self.done))
        except OSError as e:
            warn(
                f"could not write {self._file}: {e}. Training goes on; if it is killed "
                "now, a rollback may not be counted."
            )


def _read(path: str) -> list[list[Any]]:
    try:
        with open(path, encoding="utf-8") as f:
            known = json.load(f)
        return [[int(i), int(to), str(why), int(x)] for i, to, why, x in known]
    except (OSError, TypeError, ValueError):
        return []
