"""Makes known which snapshots are on the disk."""

from __future__ import annotations

import time

import mmengine.dist as dist

from ..engine.files import of_the_disk, remove
from ..engine.messages import warn, warn_of_this_rank
from ..engine.runtime import Runtime
from ..engine.verdict import Verdict
from .disk import Pointer, RollbackFiles
from .holder import Holder
from .ring import SnapshotRing
from .writer import Written

_PAUSE = 0.05  # seconds between two looks for the parts of other ranks


class Publisher:
    """Names what was written in ``last_checkpoint``, and removes what is too much.

    Args:
        runtime: Of the run.
        files: Where they are.
        pointer: Names the newest checkpoint that is good.
        holder: Holds the snapshots.
        ring: Those that may be gone back to.

    Attributes:
        outdated: Files after this iteration, up to that one, carry the disease.
        failed: The last that this process has written could not be.
    """

    def __init__(
        self,
        runtime: Runtime,
        files: RollbackFiles,
        pointer: Pointer,
        holder: Holder,
        ring: SnapshotRing[object],
    ) -> None:
        self._runtime, self._files, self._pointer = runtime, files, pointer
        self._holder, self._ring = holder, ring
        self._in_parts: list[Written] = []  # those of other ranks are awaited
        self._lost: list[int] = []  # iterations of those that lack this rank's part
        self.outdated: tuple[int, int] | None = None
        self.failed = False

    def take(self, written: list[Written]) -> None:
        """What has been written, or could not be, since the last call."""
        waiting, self._in_parts = self._in_parts, []
        if written:
            self.failed = written[-1].error is not None
        for one in [*waiting, *written]:
            first, last = self.outdated or (one.iter, -1)
            if one.error is not None:
                self._tell_error(one)
                if self._files.sharded and dist.is_main_process():
                    self._lost.append(one.iter)
            elif first < one.iter <= last:
                # It was being written when the run went back.
                if dist.is_main_process():
                    self._files.remove(one.iter)
                else:
                    remove(one.path)
            elif not dist.is_main_process():
                self.outdated = None
            elif not self._files.whole(one.iter):
                self._in_parts.append(one)
            else:
                self._publish(one, first)
                late = [p for p in self._in_parts if p.iter < one.iter]
                self._give_up(late)
        self._give_up(self._in_parts[: -self._files.keep])
        self._remove_lost(self._lost[:-1])  # the others may be writing the last one

    def wait(self, seconds: float) -> None:
        """For the parts that other ranks are writing."""
        deadline = time.monotonic() + seconds
        self.take([])
        while self._in_parts and time.monotonic() < deadline:
            time.sleep(_PAUSE)
            self.take([])
        self._give_up(self._in_parts)
        self._remove_lost(self._lost)

    def _remove_lost(self, iterations: list[int]) -> None:
        for iteration in iterations:
            self._files.remove(iteration)
        self._lost = [i for i in self._lost if i not in iterations]

    def _give_up(self, late: list[Written]) -> None:
        self._in_parts = [one for one in self._in_parts if one not in late]
        for one in late:
            path = self._files.path_of(one.iter)
            self._files.remove(one.iter)
            warn(
                f"not every rank has written its part of\n{path}\nso it is removed; "
                "the snapshot stays in memory. All ranks must be able to write to one "
                "work_dir: see what the others say, and make room on the disk."
            )

    def _publish(self, written: Written, first: int) -> None:
        path = self._files.path_of(written.iter)
        self._pointer.offer(path, written.iter)
        self._holder.written(written.iter, path)
        named = self._pointer.named
        if self.outdated is not None:
            self._files.drop_between(first, written.iter, named)
            self.outdated = None
        needed = {entry.iter for entry in self._ring.entries}
        self._files.add(path, written.iter, named, needed)
        about = dict(file=path)
        self._runtime.emit("snapshot", written.iter, Verdict.HEALTHY, **about)

    def _tell_error(self, written: Written) -> None:
        remedy = "make room on the disk"
        if not of_the_disk(written.error):
            remedy = "see what hooks put into checkpoints, beside tensors and numbers"
        warn_of_this_rank(
            f"the auto-rollback checkpoint of iteration {written.iter} could not be "
            f"written to {self._files.folder}: {written.error}. It is kept in memory "
            f"and training goes on; {remedy}, or a killed run resumes from\n"
            f"{self._pointer.named or 'the beginning'}"
        )
