"""An attempt to save checkpoints that can be taken back."""

from __future__ import annotations

import copy
import os
import os.path as osp
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import mmengine.dist as dist
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner

from ..engine.files import remove

_SUFFIX = ".amp_hooks.tmp"
# What a CheckpointHook and the message hub remember of its files.
_OWN = ("keep_ckpt_ids", "last_ckpt", "best_ckpt_path", "best_ckpt_path_dict")
_IN_HUB = ("keep_ckpt_ids", "last_ckpt", "best_score", "best_ckpt")


def is_local(backend: Any) -> bool:
    """Whether a file backend, or a FileClient, keeps files on this machine."""
    return isinstance(getattr(backend, "client", backend), LocalBackend)


def sweep(folder: str) -> None:
    """Remove what a process that was killed was writing."""
    for name in os.listdir(folder):
        if name.startswith(".") and name.endswith(_SUFFIX):
            remove(osp.join(folder, name))


class NotSaved(Exception):
    """Nothing of what a hook wanted to save is going to be."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = path, reason


@dataclass
class Removal:
    """A file that is to be removed later."""

    path: str
    remove: Callable[[str], None]


@dataclass
class File:
    """A checkpoint.

    Attributes:
        path: Its name when it is good.
        iter: Complete iterations.
        resumable: A run can go on from it.
    """

    path: str
    iter: int = 0
    resumable: bool = True

    @property
    def temporary(self) -> str:
        """Its name until then."""
        folder, name = osp.split(self.path)
        return osp.join(folder, f".{name}{_SUFFIX}")


@dataclass
class Files:
    """What becomes of files while a hook saves.

    Attributes:
        folder: The hook's.
        local: It is on this machine.
        asked: The hook has wanted to save something.
        written: What this was, under temporary names.
        removals: What it wanted to remove.
    """

    folder: str
    local: bool
    asked: bool = False
    written: list[File] = field(default_factory=list)
    removals: list[Removal] = field(default_factory=list)

    def discard(self) -> None:
        """Remove what has not got its name."""
        for file in self.written if dist.is_main_process() else ():
            remove(file.temporary)


class Memory:
    """What a hook and the message hub know of checkpoints, to be taken back."""

    def __init__(self, hook: CheckpointHook, runner: Runner) -> None:
        self._hook, self._info = hook, runner.message_hub.runtime_info
        own = {name: value for name, value in vars(hook).items() if name in _OWN}
        self._own = {name: copy.copy(value) for name, value in own.items()}
        self._in_hub = {k: v for k, v in self._info.items() if k.startswith(_IN_HUB)}

    def restore(self) -> None:
        """Take it back."""
        vars(self._hook).update(self._own)
        for key in [key for key in self._info if key.startswith(_IN_HUB)]:
            del self._info[key]
        self._info.update(self._in_hub)


class Overlay:
    """A thing with some attributes replaced, for the one who is given it."""

    def __init__(self, thing: Any, **replaced: Any) -> None:
        vars(self).update(replaced, _thing=thing)

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["_thing"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(vars(self)["_thing"], name, value)


class RunnerForHook(Overlay):
    """The runner, as a CheckpointHook sees it while it saves."""

    @property
    def work_dir(self) -> str:
        """A folder to be thrown away: the hook writes a ``last_checkpoint`` there."""
        if "_folder" not in vars(self):
            vars(self)["_folder"] = tempfile.mkdtemp(prefix="amp_hooks_")
        return str(vars(self)["_folder"])

    def close(self) -> None:
        """Throw it away."""
        if "_folder" in vars(self):
            shutil.rmtree(vars(self)["_folder"], ignore_errors=True)
