"""Lets MMEngine's CheckpointHook write good checkpoints only, and lose none."""

from __future__ import annotations

import os.path as osp
import shutil
from collections.abc import Callable, Container
from contextlib import ExitStack
from typing import Any

import mmengine.dist as dist
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner

from ..engine import private
from ..engine.files import of_the_disk, publish
from ..engine.messages import warn
from ..engine.of_others import text_of
from ..engine.patch import replace
from ..engine.run import any_rank
from ..engine.runtime import Runtime
from ..engine.safe_load import allow_mmengine_checkpoints
from ..engine.sharded import is_sharded
from ..engine.words import first_names
from .checkpoint_file import REFUSED, damage
from .disk import Pointer, same_file
from .save_attempt import (
    File,
    Files,
    Memory,
    NotSaved,
    Overlay,
    Removal,
    RunnerForHook,
    is_local,
    sweep,
)


class CheckpointGuard:
    """Stands between every CheckpointHook of a runner and the disk.

    A checkpoint is written under another name, flushed, read back, and gets its name
    only if it is whole and finite. Only then are older ones removed, and never the one
    that ``last_checkpoint`` names. Otherwise nothing is changed: the hook and the
    message hub forget the attempt, a best score included, and training goes on. The
    hook does not write ``last_checkpoint`` itself.

    The files hold what they would hold anyway. In stores other than the local disk only
    a state that is not finite is refused.

    Args:
        runner: The run.
        nonfinite: Names of what is not finite in the learned state of this rank.
        on_saved: Called on rank 0 as ``on_saved(path, iterations)`` when a checkpoint
            that a run can go on from has its name.
    """

    def __init__(
        self,
        runner: Runner,
        nonfinite: Callable[[], list[str]],
        on_saved: Callable[[str, int], object],
    ) -> None:
        self._runner, self._nonfinite, self._on_saved = runner, nonfinite, on_saved
        self._ignore: Container[str] = frozenset()
        self._swept: set[str] = set()  # folders
        self._owed: list[Removal] = []
        self._undo = ExitStack()

    def attach(self) -> None:
        """Guard the hooks; to be called before the first step."""
        self._undo.close()
        allow_mmengine_checkpoints()
        runtime = Runtime.of(self._runner)
        runtime.failures.register(self, self.detach)
        self._ignore = runtime.by_design
        for hook in self._runner.hooks:
            if isinstance(hook, CheckpointHook):
                for name in private.CHECKPOINT_METHODS:
                    replace(hook, name, self._guarded(hook, name), self._undo)

    def detach(self) -> None:
        """Remove what could not be removed before; give the hooks back as they were."""
        self.settle()
        self._undo.close()
        for hook in self._runner.hooks:
            # It is going to publish each of its best checkpoints; there may be none.
            best = getattr(hook, "best_ckpt_path_dict", None)
            if isinstance(hook, CheckpointHook) and best:
                hook.best_ckpt_path_dict = {k: v for k, v in best.items() if v}

    def settle(self) -> None:
        """Remove the files that CheckpointHook has given up.

        Except the one that ``last_checkpoint`` names: it stays until another is named.
        While the run is watched or ill all stay: the new ones may be worth nothing.
        """
        if not (self._owed and Runtime.of(self._runner).condition.well):
            return
        named = Pointer(self._runner.work_dir).named
        owed, self._owed = self._owed, []
        for removal in owed:
            if named is not None and same_file(removal.path, named):
                self._owed.append(removal)
                continue
            try:
                removal.remove(removal.path)
            except OSError as e:
                warn(f"remove it yourself, for it could not be ({e}):\n{removal.path}")

    def _guarded(self, hook: CheckpointHook, name: str) -> Callable[..., None]:
        original = getattr(hook, name)

        def save(runner: Any, *args: Any, **kwargs: Any) -> None:
            if isinstance(runner, RunnerForHook):  # the one calls the other
                original(runner, *args, **kwargs)
                return
            try:
                self._transact(hook, lambda view: original(view, *args, **kwargs))
            except Exception as e:
                failures = Runtime.of(self._runner).failures
                if not failures.is_ours(self, name, e):
                    raise
                # An exception of the hook's own comes again, and is not ours to bear.
                original(runner, *args, **kwargs)
                failures.bear(self, name, e)

        return save

    def _transact(self, hook: Any, save: Callable[[Any], None]) -> None:
        """All that a hook wants to save at once is saved, or nothing of it."""
        before = Memory(hook, self._runner)
        backend = hook.file_backend
        files = Files(hook.out_dir, is_local(backend))
        view = RunnerForHook(self._runner, save_checkpoint=self._saver(files))
        hook.file_backend = Overlay(
            backend,
            remove=lambda path: files.removals.append(Removal(path, backend.remove)),
            rmtree=lambda path: files.removals.append(Removal(path, backend.rmtree)),
        )
        try:
            try:
                save(view)
            except OSError:
                # Only a pointer that nobody reads is written after the checkpoints.
                if not files.written:
                    raise
            if files.asked:
                self._publish(files)
        except NotSaved as e:
            before.restore()
            named = Pointer(self._runner.work_dir).named
            warn(
                f"no checkpoint was written, for {e.reason}:\n{e.path}\nNone was "
                "removed, and training goes on; last_checkpoint names as before\n"
                f"{named or 'none'}"
            )
            return
        except Exception:
            before.restore()
            raise
        finally:
            hook.file_backend = backend
            view.close()
            files.discard()
        self._rotate(files, hook.last_ckpt)

    def _saver(self, files: Files) -> Callable[..., None]:
        def save_checkpoint(
            out_dir: str, filename: str, *args: Any, **kwargs: Any
        ) -> None:
            path = osp.join(out_dir, filename)
            bad = self._nonfinite()
            files.asked = True
            if any_rank(bool(bad)):
                names = first_names(bad) or "on another rank"
                raise NotSaved(path, f"the state is not finite ({names})")
            if is_sharded(self._runner):
                self._save_parts(path, *args, **kwargs)
                return
            if not files.local:
                self._runner.save_checkpoint(out_dir, filename, *args, **kwargs)
                return
            file, failure = File(path), None
            files.written.append(file)
            try:
                self._runner.save_checkpoint(
                    *osp.split(file.temporary), *args, **kwargs
                )
                if dist.is_main_process():
                    failure = damage(file.temporary, self._ignore)
            except (OSError, RuntimeError, MemoryError) as e:
                failure = _why(e)
            if failure is not None and failure.startswith(REFUSED):
                warn(f"kept, but it cannot be resumed from, for {failure}:\n{path}")
                file.resumable, failure = False, None
            if any_rank(failure is not None):
                raise NotSaved(path, failure or "another rank failed")
            file.iter = (kwargs.get("meta") or {}).get("iter", self._runner.iter)
            file.resumable &= kwargs.get("save_optimizer", True) and (
                kwargs.get("save_param_scheduler", True)
                or self._runner.param_schedulers is None
            )

        return save_checkpoint

    def _save_parts(self, path: str, *args: Any, **kwargs: Any) -> None:
        """A folder, to which each rank writes; of no use where one could not."""
        failure = None
        try:
            self._runner.save_checkpoint(*osp.split(path), *args, **kwargs)
        except (OSError, RuntimeError) as e:
            if not of_the_disk(e):
                raise
            failure = _why(e)
        if any_rank(failure is not None):
            if dist.is_main_process():
                shutil.rmtree(path, ignore_errors=True)
            raise NotSaved(path, failure or "another rank failed")

    def _publish(self, files: Files) -> None:
        path, failure = files.folder, None
        try:
            for file in files.written if dist.is_main_process() else ():
                path = file.path
                publish(file.temporary, path)
        except OSError as e:
            failure = str(e)
        if any_rank(failure is not None):
            raise NotSaved(path, failure or "the main process could not rename it")

    def _rotate(self, files: Files, last: str | None) -> None:
        if not dist.is_main_process():
            return
        for file in files.written:
            if file.resumable and last is not None and same_file(file.path, last):
                self._on_saved(file.path, file.iter)
        # One that was written anew under its old name is no old one any more.
        new = [file.path for file in files.written]
        self._owed = [
            removal
            for removal in self._owed + files.removals
            if not any(same_file(removal.path, path) for path in new)
        ]
        self.settle()
        if files.local and files.asked and files.folder not in self._swept:
            self._swept.add(files.folder)
            sweep(files.folder)


def _why(error: Exception) -> str:
    """What has kept a checkpoint from being written, and what to do about it."""
    if isinstance(error, RecursionError):  # a RuntimeError, as torch's of a full disk
        return f"something in it is nested too deep to be pickled ({error})"
    if isinstance(error, MemoryError):
        return f"there was too little memory to write it ({text_of(error)})"
    return f"{error}. Make room on the disk or check it"
