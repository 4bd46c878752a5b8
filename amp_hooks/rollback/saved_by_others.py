"""Checkpoints that others have saved, CheckpointHook's above all."""

from __future__ import annotations

import os.path as osp
from dataclasses import dataclass

from .disk import Pointer


@dataclass
class _Saved:
    path: str
    iter: int
    left: int  # healthy iterations until it is proven


class SavedByOthers:
    """They are named as good once healthy iterations have followed, as ours are.

    Args:
        pointer: Names the newest checkpoint that is good.
        probation: Healthy iterations that prove one.
    """

    def __init__(self, pointer: Pointer, probation: int) -> None:
        self._pointer, self._probation = pointer, probation
        self._waiting: list[_Saved] = []

    def add(self, path: str, iteration: int) -> None:
        """Take in one that was verified."""
        self._waiting.append(_Saved(path, iteration, self._probation))

    def healthy(self, iterations: int) -> None:
        """Iterations that were not bad have passed."""
        for saved in self._waiting:
            saved.left -= iterations
        self.offer(all_of_them=False)

    def offer(self, all_of_them: bool) -> None:
        """Name those that are proven; a good end proves all."""
        proven = [s for s in self._waiting if all_of_them or s.left <= 0]
        self._waiting = [s for s in self._waiting if s not in proven]
        for saved in proven:
            if osp.exists(saved.path):  # not rotated away
                self._pointer.offer(saved.path, saved.iter)

    def clear(self) -> None:
        """They carry the disease."""
        self._waiting.clear()
