"""The auto-rollback checkpoints on disk, and the pointer that a resume follows."""

from __future__ import annotations

import os
import os.path as osp
import re

from mmengine.runner import Runner

from .core.checkpoint_file import damage
from .core.files import publish, write_text
from .pointer import Pointer
from .runtime import warn


class RollbackFiles:
    """Keeps the newest ``keep`` checkpoints in ``<work_dir>/rollback``.

    Args:
        work_dir: The runner's.
        keep: At least 1.

    Attributes:
        pointer: ``last_checkpoint``.
    """

    def __init__(self, work_dir: str, keep: int) -> None:
        self.folder = osp.join(work_dir, "rollback")
        self.keep = keep
        self.pointer = Pointer(work_dir)
        self._files: list[str] = []

    def prepare(self, iteration: int) -> None:
        """Make the folder, adopt the files of the run that is resumed.

        Raises:
            OSError: If the folder cannot be written; names work_dir and the remedy.
        """
        probe = osp.join(self.folder, ".probe")
        try:
            os.makedirs(self.folder, exist_ok=True)
            write_text(probe, "")
            os.remove(probe)
        except OSError as e:
            raise OSError(
                f"RollbackHook cannot write its checkpoints to {self.folder!r} ({e}). "
                "Give a writable work_dir (work_dir=... in the config, or --work-dir), "
                "or take RollbackHook out of custom_hooks."
            ) from e
        numbered = {}
        for name in os.listdir(self.folder):
            match = re.fullmatch(r"iter_(\d+)\.pth", name)
            if match and 0 < int(match[1]) <= iteration:
                numbered[int(match[1])] = osp.join(self.folder, name)
        self._files = [numbered[n] for n in sorted(numbered)]

    @property
    def newest(self) -> str | None:
        """The newest checkpoint that was verified, if there is one."""
        return self._files[-1] if self._files else None

    def write(self, runner: Runner, ignore: frozenset[str]) -> str:
        """Write ``iter_<N>.pth``, read it back, and only then give it its name.

        It is saved by ``Runner.save_checkpoint``, so it holds what any checkpoint of
        the run holds, and read back by the code that a resume uses.

        Args:
            runner: ``runner.iter`` iterations are complete.
            ignore: As for :func:`damage`.

        Returns:
            The path.

        Raises:
            OSError, RuntimeError: It could not be written, read back, or is not finite.
                Neither a half file nor a temporary one is left.
        """
        path = osp.join(self.folder, f"iter_{runner.iter}.pth")
        temporary = osp.join(self.folder, f".iter_{runner.iter}.pth.tmp")
        try:
            runner.save_checkpoint(
                self.folder,
                osp.basename(temporary),
                meta=dict(epoch=runner.epoch, iter=runner.iter),
                by_epoch=False,
            )
            if words := damage(temporary, ignore):
                raise RuntimeError(f"read back, {words}")
            publish(temporary, path)
        finally:
            if osp.exists(temporary):
                os.remove(temporary)
        self._files = [f for f in self._files if f != path] + [path]
        self.pointer.offer(path, runner.iter)
        self._rotate()
        return path

    def try_write(self, runner: Runner, ignore: frozenset[str]) -> str | None:
        """As :meth:`write`, but a failure is a warning: it must not cost the run."""
        try:
            return self.write(runner, ignore)
        except (OSError, RuntimeError) as e:
            warn(
                f"the auto-rollback checkpoint of iteration {runner.iter} could not be "
                f"written to {self.folder}: {e}. It is kept in memory and training "
                "goes on; make room on the disk, or a killed run resumes from "
                f"{self.newest or 'the beginning'}."
            )
            return None

    def _rotate(self) -> None:
        while len(self._files) > self.keep:
            oldest = self._files.pop(0)
            if oldest != self.pointer.named and osp.exists(oldest):
                os.remove(oldest)
