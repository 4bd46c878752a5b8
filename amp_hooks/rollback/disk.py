"""The auto-rollback checkpoints on disk."""

from __future__ import annotations

import contextlib
import glob
import os
import os.path as osp
import re
import shutil
import threading
from collections.abc import Iterable

import mmengine.dist as dist

from ..engine.files import remove, write_text
from ..engine.messages import warn
from ..errors import UnwritableError
from .checkpoint_file import part_of_rank

ATTEMPTS = "attempts.json"  # beside them


class RollbackFiles:
    """The newest ``keep`` checkpoints in ``<work_dir>/rollback``.

    Args:
        work_dir: The runner's.
        keep: At least 1.
        sharded: Each rank has a part of the model: a checkpoint is a folder, in which
            each writes a file, as MMEngine's FSDPStrategy does.
    """

    def __init__(self, work_dir: str, keep: int, sharded: bool = False) -> None:
        self.folder = osp.join(work_dir, "rollback")
        self.keep, self.sharded = keep, sharded
        self._files: dict[int, str] = {}  # by iteration
        self._begun_at = 0

    def prepare(self, iteration: int) -> None:
        """Make the folder, adopt the files of the run that is resumed.

        Raises:
            UnwritableError: The folder cannot be written; names work_dir and remedy.
        """
        self._begun_at = iteration
        probe = osp.join(self.folder, ".probe")
        try:
            os.makedirs(self.folder, exist_ok=True)
            write_text(probe, "")
            os.remove(probe)
        except OSError as e:
            raise UnwritableError(
                f"RollbackHook cannot write its checkpoints to {self.folder!r} ({e}). "
                "Give a writable work_dir (work_dir=... in the config, or --work-dir), "
                "or take RollbackHook out of custom_hooks."
            ) from e
        for name in os.listdir(self.folder):
            path = osp.join(self.folder, name)
            if re.fullmatch(r"\.iter_\d+\.pth\.tmp", name):
                remove(path)  # of a process that was killed
            for unfinished in glob.glob(osp.join(path, ".rank*.pth.tmp")):
                remove(unfinished)
            match = re.fullmatch(r"iter_(\d+)\.pth", name)
            if match and 0 < int(match[1]) <= iteration:
                self._files[int(match[1])] = path

    def path_of(self, iteration: int) -> str:
        """Where the checkpoint of that many complete iterations belongs."""
        return osp.join(self.folder, f"iter_{iteration}.pth")

    def own_path(self, iteration: int) -> str:
        """Where this rank writes it, or its part of it."""
        path = self.path_of(iteration)
        if not self.sharded:
            return path
        with contextlib.suppress(OSError):  # the writer tells
            os.makedirs(path, exist_ok=True)
        return part_of_rank(path, dist.get_rank())

    def make_room(self, iteration: int) -> None:
        """Before parts are written: those of an earlier run are no parts of it."""
        begun = iteration == self._begun_at > 0  # what this run has resumed from
        if self.sharded and not begun and dist.is_main_process():
            self._remove(self.path_of(iteration))

    def remove(self, iteration: int) -> None:
        """It is worth nothing, or some ranks have not written their parts."""
        self._remove(self.path_of(iteration))

    def whole(self, iteration: int) -> bool:
        """Whether every rank has written its part."""
        ranks = dist.get_world_size() if self.sharded else 0
        path = self.path_of(iteration)
        return all(osp.exists(part_of_rank(path, rank)) for rank in range(ranks))

    def add(
        self, path: str, iteration: int, protected: str | None, needed: Iterable[int]
    ) -> None:
        """A checkpoint has been written; remove those that are too many.

        Args:
            path: The checkpoint.
            iteration: Complete iterations.
            protected: A file that must stay in any case, if there is one.
            needed: Iterations whose files must stay; the newest fill up.
        """
        self._files[iteration] = path
        kept = {iteration} | (set(needed) & set(self._files))
        for recent in sorted(self._files, reverse=True):
            if len(kept) < self.keep:
                kept.add(recent)
        for old in set(self._files) - kept:
            self._drop(old, protected)

    def drop_between(self, first: int, last: int, protected: str | None) -> None:
        """Remove those later than iteration ``first`` and earlier than ``last``."""
        for iteration in [i for i in self._files if first < i < last]:
            self._drop(iteration, protected)

    def earlier_than(self, iteration: int) -> list[tuple[int, str]]:
        """Iterations and paths, the oldest first."""
        return [(i, self._files[i]) for i in sorted(self._files) if i < iteration]

    def clear(self, named: str | None) -> None:
        """A run that has ended well needs none of them, but the one that is named."""
        if not dist.is_main_process() or named is None or not osp.exists(named):
            return
        # That of iteration 0 is not adopted at a resume.
        self._files.setdefault(0, self.path_of(0))
        for iteration in list(self._files):
            self._drop(iteration, named)
        remove(osp.join(self.folder, ATTEMPTS))  # the checkpoint has them too
        with contextlib.suppress(OSError):
            os.rmdir(self.folder)  # if nothing is left

    def _drop(self, iteration: int, protected: str | None) -> None:
        if protected is None or not same_file(self._files[iteration], protected):
            self._remove(self._files.pop(iteration))

    def _remove(self, path: str) -> None:
        if osp.isdir(path):  # of a sharded model
            shutil.rmtree(path, ignore_errors=True)
        else:
            remove(path)


class Pointer:
    """Owns ``<work_dir>/last_checkpoint``.

    MMEngine reads it for ``resume=True``. All who write checkpoints that were verified
    offer them here, from any thread, and the latest wins.

    Args:
        work_dir: The runner's.
    """

    def __init__(self, work_dir: str) -> None:
        self._file = osp.join(work_dir, "last_checkpoint")
        self._iter: int | None = None  # of what this run has offered
        self._lock = threading.Lock()

    @property
    def named(self) -> str | None:
        """What it names, be it there or not."""
        try:
            with open(self._file, encoding="utf-8", errors="replace") as f:
                # A power failure can leave a file of zeros.
                return f.read().strip("\0 \t\r\n") or None
        except OSError:
            return None

    def offer(self, path: str, iteration: int) -> bool:
        """Let it name a checkpoint, unless it names a later one of this run already.

        It is replaced atomically. A disk that refuses costs a warning, not the run.

        Args:
            path: A checkpoint that was verified.
            iteration: Complete iterations that it holds.

        Returns:
            Whether it names that checkpoint now.
        """
        path = osp.abspath(path)
        with self._lock:
            if self._iter is None:
                # A run begun anew in an old work_dir has learned nothing yet; what is
                # there may be days of work that somebody forgot to --resume.
                named = self.named
                if iteration == 0 and named is not None and osp.exists(named):
                    return named == path
            elif iteration < self._iter:
                return False
            try:
                write_text(self._file, path)
            except OSError as e:
                warn(
                    f"{self._file} could not be replaced ({e}). Training goes on. "
                    "Make room on the disk: RollbackHook looks for what is newer, "
                    f"MMEngine alone would resume from\n{self.named}"
                )
                return False
            self._iter = iteration
            return True


def same_file(a: str, b: str) -> bool:
    """Whether two paths lead to one place."""
    return osp.realpath(a) == osp.realpath(b)
