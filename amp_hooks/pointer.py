"""The file that a resume follows."""

from __future__ import annotations

import os.path as osp
import threading

from .core.files import write_text
from .runtime import warn


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
                if iteration == 0 and named is not None and osp.isfile(named):
                    return named == path
            elif iteration < self._iter:
                return False
            try:
                write_text(self._file, path)
            except OSError as e:
                warn(
                    f"{self._file} could not be replaced ({e}); it names {self.named}. "
                    "Training goes on. Make room on the disk: MMEngine alone would "
                    "resume from what it names, RollbackHook looks for what is newer."
                )
                return False
            self._iter = iteration
            return True


def same_file(a: str, b: str) -> bool:
    """Whether two paths lead to one place."""
    return osp.realpath(a) == osp.realpath(b)
