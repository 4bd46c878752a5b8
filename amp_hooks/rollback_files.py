"""The auto-rollback checkpoints on disk, and the pointer that a resume follows."""

from __future__ import annotations

import os
import os.path as osp
import re

from mmengine.runner import Runner
from mmengine.runner.checkpoint import _load_checkpoint

from .core.files import publish, write_text
from .core.finite import nonfinite_names
from .runtime import warn

# What must be finite in a checkpoint. The log history beside it may well hold NaN.
LEARNED_KEYS = ("state_dict", "optimizer", "ema_state_dict")


def nonfinite_in(checkpoint: dict, ignore: frozenset[str] = frozenset()) -> list[str]:
    """Names of tensors in an MMEngine checkpoint that hold NaN or infinity.

    Args:
        checkpoint: As MMEngine saves it.
        ignore: Names as from :func:`amp_hooks.snapshot.infinite_by_design`.
    """
    buffers = {name.split(".", 1)[1] for name in ignore if name.startswith("model.")}
    learned = {key: checkpoint[key] for key in LEARNED_KEYS if key in checkpoint}
    names = nonfinite_names(learned, limit=1000)
    return [
        name
        for name in names
        if name.replace("ema_state_dict.module.", "state_dict.", 1).split(".", 1)[1]
        not in buffers
    ]


class RollbackFiles:
    """Keeps the newest ``keep`` checkpoints in ``<work_dir>/rollback``.

    Args:
        work_dir: The runner's.
        keep: At least 1.

    Attributes:
        pointer_suspect: Somebody else has just saved a checkpoint that is not finite,
            and so ``last_checkpoint`` may name it.
    """

    def __init__(self, work_dir: str, keep: int) -> None:
        self.work_dir = work_dir
        self.folder = osp.join(work_dir, "rollback")
        self.keep = keep
        self.pointer_suspect = False
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
            ignore: As for :func:`nonfinite_in`.

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
            written = _load_checkpoint(temporary, map_location="cpu", logger="silent")
            if bad := nonfinite_in(written, ignore):
                raise RuntimeError(f"not finite after reading it back: {bad[:5]}")
            publish(temporary, path)
        finally:
            if osp.exists(temporary):
                os.remove(temporary)
        self._files = [f for f in self._files if f != path] + [path]
        self._point_to(path, runner.iter)
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

    def mend_pointer(self) -> None:
        """If it is suspect, let ``last_checkpoint`` name the newest verified file."""
        if not self.pointer_suspect or self.newest is None:
            return
        self.pointer_suspect = False
        try:
            write_text(self._pointer, self.newest)
        except OSError as e:
            warn(f"could not replace {self._pointer}: {e}")
        else:
            warn(
                "the checkpoint just saved is not finite; last_checkpoint names "
                f"{self.newest} instead."
            )

    @property
    def _pointer(self) -> str:
        return osp.join(self.work_dir, "last_checkpoint")

    def _named(self) -> str | None:
        try:
            with open(self._pointer, encoding="utf-8") as f:
                return f.read().strip()
        except OSError:
            return None

    def _point_to(self, path: str, iteration: int) -> None:
        # A run started anew in an old work_dir has learned nothing yet; what is there
        # may be days of work that somebody forgot to --resume.
        named = self._named()
        if iteration == 0 and named and osp.isfile(named):
            return
        write_text(self._pointer, path)

    def _rotate(self) -> None:
        while len(self._files) > self.keep:
            oldest = self._files.pop(0)
            if oldest != self._named() and osp.exists(oldest):
                os.remove(oldest)
