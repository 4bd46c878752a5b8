"""Takes snapshots of a run, proves them, writes them, finds the one to go back to."""

from __future__ import annotations

import dataclasses
from collections.abc import Container
from typing import Any

import mmengine.dist as dist
from mmengine.runner import Runner

from ..engine import private
from ..engine.condition import Condition
from ..engine.messages import warn, warn_of_this_rank
from ..engine.rng import rng_of_all_ranks
from ..engine.run import any_rank
from ..engine.runtime import Runtime
from ..engine.sharded import as_parts, is_sharded
from .checkpoint_file import part_of_rank, read_header
from .disk import Pointer, RollbackFiles
from .holder import Holder
from .one_folder import prepare
from .own_part import Part
from .publisher import Publisher
from .resume import Candidate, of_older_runs
from .ring import Entry, SnapshotRing
from .run_state import RunCheckpoint, Snapshot
from .saved_by_others import SavedByOthers
from .writer import SnapshotWriter

# Seconds for each of the last two files of a run. The other ranks wait meanwhile, and
# NCCL gives up after 600.
_LAST_WAIT = 240.0
_PARTS_WAIT = 60.0  # for those of other ranks, which write at the same time


class SnapshotStore:
    """The ring in memory, and the files that the main process writes of it.

    Args:
        runner: The run.
        ring: Where proven snapshots are kept.
        pinned: As :class:`HostCopier`.
        ignore: What may hold NaN or infinity, by its name in the learned state.

    Attributes:
        pointer: Names the newest checkpoint that is good.
        clamp_needed: On this rank a clamp had to bound logits since probation began.
    """

    def __init__(
        self,
        runner: Runner,
        ring: SnapshotRing[Any],
        pinned: bool,
        ignore: Container[str],
    ) -> None:
        self._runner, self._ring = runner, ring
        self._runtime = Runtime.of(runner)
        self._holder = Holder(runner, pinned, ignore)
        self._sharded = is_sharded(runner)
        self._files = RollbackFiles(runner.work_dir, ring.keep, self._sharded)
        self._waiting: Snapshot | None = None  # for the writer
        self._last_written = -1  # iteration; perhaps it still is being written
        self._writer = SnapshotWriter()
        self.pointer = Pointer(runner.work_dir)
        self._saved = SavedByOthers(self.pointer, ring.probation)
        self._publisher = Publisher(
            self._runtime, self._files, self.pointer, self._holder, ring
        )
        self.clamp_needed = self._was_ill = False  # since probation began
        writable = prepare(self._files, runner.iter)
        self._writes = writable and (self._sharded or dist.is_main_process())
        if self._writes:
            self._run = RunCheckpoint(runner)
        if private.is_resumed(runner):
            earlier = [self._of_this_run() if dist.is_main_process() else []]
            dist.broadcast_object_list(earlier)
            for iteration, path in earlier[0]:
                own = part_of_rank(path, dist.get_rank()) if self._sharded else path
                ring.add(iteration, Part(iteration, path=own), proven=True)

    @property
    def folder(self) -> str:
        """Where the files are."""
        return self._files.folder

    def take(self, proven: bool, keep: bool = True, write: bool = True) -> None:
        """Copy the state as it is, between two iterations.

        Args:
            proven: It needs no probation: write it at once.
            keep: Put it into the ring.
            write: Write it to a file, once it is proven.
        """
        as_parts(self._runner)
        if not (self._writer.busy or self._waiting):  # with what is being written
            self._holder.make_room(self._ring)
        checkpoint = self._checkpoint() if write else None
        snapshot = None
        try:
            snapshot = self._holder.take(checkpoint)
        except (MemoryError, RuntimeError) as e:
            warn(
                f"no snapshot could be taken at iteration {self._runner.iter}: {e}. "
                "Training goes on; the earlier ones stay."
            )
        if write:
            self._files.make_room(self._runner.iter)  # before a rank writes its part
        if any_rank(snapshot is None) or snapshot is None:
            return
        self.clamp_needed = self._was_ill = False
        cost = self._condition.cost
        entry = self._ring.add(snapshot.iter, snapshot, proven, cost) if keep else None
        if entry is None and isinstance(snapshot, Snapshot):
            self._write(snapshot)
        elif entry is None:
            return
        elif entry.left == 0:
            self._write_entry(entry)

    def healthy(self, iterations: int) -> None:
        """Iterations that were not bad have passed."""
        well = self._condition.well
        self._was_ill |= not well
        now = private.iteration(self._runner)
        proven = self._ring.healthy(
            now, iterations, self._clamp_needed_anywhere, self._ill_anywhere
        )
        for entry in proven:
            self._write_entry(entry)
        if well or self._condition.learns:
            self._saved.healthy(iterations)

    def saved(self, path: str, iteration: int) -> None:
        """Somebody else has saved a checkpoint that was verified."""
        self._saved.add(path, iteration)

    @property
    def holds_all(self) -> bool:
        """Whether this process has whole snapshots, and not rank 0 for it."""
        return self._holder.holds_all

    @property
    def cost(self) -> float | None:
        """Loss of the newest when it was taken, where that is known."""
        return self._cost_of(self._ring.entries[-1]) if self._ring.entries else None

    def _cost_of(self, entry: Entry[Any]) -> float | None:
        # That of the start was not known yet when it was taken.
        return self._condition.start if entry.iter == 0 else entry.cost

    def look(
        self, now: int, before: int | None = None
    ) -> tuple[Snapshot | None, float | None]:
        """What :meth:`go_back` would return, if this process has it; its loss then."""
        entry = self._ring.target(now, before)
        if entry is None:
            return None, None
        return self._holder.here(entry.item), self._cost_of(entry)

    def go_back(self, now: int, before: int | None = None) -> Snapshot | None:
        """The snapshot to restore; later files will be removed in time.

        Args:
            now: The present iteration.
            before: As for :meth:`SnapshotRing.go_back`.
        """
        self._saved.clear()
        while (entry := self._ring.target(now, before)) is not None:
            snapshot = self._holder.whole(entry.item)
            if snapshot is None:  # a file that cannot be read any more
                self._ring.entries.remove(entry)
                continue
            self._ring.go_back(now, before)
            if self._holder.holds_all:
                entry.item = snapshot
            self._publisher.outdated = entry.iter, self._last_written
            self._holder.forget_after(entry.iter)
            if self._waiting is not None and self._waiting.iter > entry.iter:
                self._waiting = None
            return snapshot
        return None

    def forget_last(self) -> None:
        """The last rollback does not make the next go further."""
        self._ring.last = None

    def collect(self, wait: float = 0.0) -> None:
        """See what the writer has done, and give it what waits."""
        self._publisher.take(self._writer.collect(wait))
        if self._waiting is not None and not self._writer.busy:
            waiting, self._waiting = self._waiting, None
            self._write(waiting)

    def finish(self, diverged: bool = False) -> None:
        """Wait for the last file; a good end proves what others have saved."""
        self.collect()
        self.collect(_LAST_WAIT)
        self.collect(_LAST_WAIT)
        failed = self._sharded and any_rank(self._publisher.failed)
        self._publisher.wait(0.0 if failed else _PARTS_WAIT)
        if self._writer.busy:
            warn(
                f"the last checkpoint is still being written to {self.folder} after "
                f"{_LAST_WAIT:g} s; the disk seems to hang. The newest that is whole "
                f"is\n{self.pointer.named}"
            )
        now = self._condition
        if not diverged and (now.well or now.convalescent or now.learns):
            self._saved.offer(all_of_them=True)
            if not self._writer.busy:
                self._files.clear(self.pointer.named)

    @property
    def on_probation(self) -> bool:
        """Whether a snapshot is not proven yet."""
        return self._ring.on_probation

    def cooling(self, now: int) -> bool:
        """Whether the last rollback was at most ``cooldown`` iterations ago."""
        return self._ring.cooling(now)

    def _clamp_needed_anywhere(self) -> bool:
        # Logits are each rank's own, and all must go back to the same snapshot.
        needed, self.clamp_needed = self.clamp_needed, False
        return any_rank(needed)

    @property
    def _condition(self) -> Condition:
        return self._runtime.condition

    def _ill_anywhere(self) -> bool:
        # Losses are each rank's own as well.
        was_ill, self._was_ill = self._was_ill, not self._condition.well
        return any_rank(was_ill)

    def _checkpoint(self) -> dict[str, Any] | None:
        rng = rng_of_all_ranks()
        if not self._writes:
            return None
        try:
            checkpoint = self._run.make(self._runner)
        except Exception as e:  # of a hook that adds its part
            warn_of_this_rank(
                f"the checkpoint of iteration {self._runner.iter} could not be made: "
                f"{e!r}. The snapshot is kept in memory and training goes on; see "
                "which hook's before_save_checkpoint raised that."
            )
            return None
        checkpoint.setdefault("amp_hooks", {})["rng"] = rng
        return checkpoint

    def _of_this_run(self) -> list[tuple[int, str]]:
        """Files of the process before, not those of an older run in this work_dir."""
        files = self._files.earlier_than(self._runner.iter)
        headers = [(i, path, read_header(path)) for i, path in files]
        found = [Candidate(path, h, True) for _, path, h in headers if h is not None]
        older = {c.path for c in of_older_runs(found, self.pointer.named)}
        good = {c.path for c in found} - older
        return [(i, path) for i, path in files if path in good]

    def _write_entry(self, entry: Entry[Any]) -> None:
        if isinstance(entry.item, Snapshot):
            self._write(entry.item)
            # The log history in it may be large; the rest is in the state as well.
            entry.item = dataclasses.replace(entry.item, checkpoint=None)

    def _write(self, snapshot: Snapshot) -> None:
        if snapshot.checkpoint is None:
            return
        self.collect()
        if self._writer.busy:
            if self._waiting is not None:
                warn(
                    "the disk is slower than the snapshots: the one of iteration "
                    f"{self._waiting.iter} is kept in memory only. Use a longer "
                    "interval or a faster disk."
                )
            self._waiting = snapshot
            return
        self._last_written = snapshot.iter
        path = self._files.own_path(snapshot.iter)
        self._writer.start(snapshot.checkpoint, path, self._runtime.saver(path))
