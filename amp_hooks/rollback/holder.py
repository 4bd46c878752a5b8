"""Who holds what of a snapshot: this process, rank 0, or a file."""

from __future__ import annotations

import os.path as osp
from collections.abc import Container
from typing import Any

import mmengine.dist as dist
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from ..engine.averaging import ema_hooks
from ..engine.messages import warn
from ..engine.run import any_rank
from ..engine.safe_read import read_safely
from .checkpoint_file import damage
from .from_rank_0 import from_rank_0
from .host_copy import HostCopier, host_bytes
from .host_memory import free_host_bytes
from .own_part import Part, own_part, with_own_part
from .ring import SnapshotRing
from .run_state import Snapshot, learned_state, optimizer_layouts

# Of what is free: what the run itself is going to ask for is not known.
_SHARE = 0.8


class Holder:
    """Copies the state of a run, and has it again when it is needed.

    Under DDP all ranks have the same weights and optimizers: rank 0 alone holds copies,
    and hands them to the others at a rollback; these hold what is their own, buffers.
    Of the snapshots that are proven the newest is in memory, and those before it are
    left to their files. A machine that has no memory left for a copy gets none.

    Args:
        runner: The run.
        pinned: As :class:`HostCopier`.
        ignore: What may hold NaN or infinity, by its name in the learned state.
    """

    def __init__(self, runner: Runner, pinned: bool, ignore: Container[str]) -> None:
        self._runner, self._ignore = runner, ignore
        self._copier = HostCopier(pinned)
        several = dist.get_world_size() > 1
        self._shared = several and is_model_wrapper(runner.model)
        # Without DDP nobody knows whether ranks are alike: each holds its own.
        self._whole = not self._shared or dist.is_main_process()
        self._may_leave = not several or self._shared
        self._written: dict[int, str] = {}  # verified files, by iteration
        self._told = False

    def take(self, checkpoint: dict[str, Any] | None) -> Snapshot | Part:
        """Copy the state as it is, with the checkpoint made from it.

        Raises:
            MemoryError, RuntimeError: There is no memory for it.
        """
        state = learned_state(self._runner)
        if not self._whole:
            own = self._copier.copy(own_part(self._runner, state))
            return Part(self._runner.iter, own)
        self._see_that_it_fits(host_bytes(state))
        state, checkpoint = self._copier.copy((state, checkpoint))
        layouts = optimizer_layouts(self._runner)
        return Snapshot(self._runner.iter, state, layouts, checkpoint)

    def written(self, iteration: int, path: str) -> None:
        """A snapshot's file is there, and was verified."""
        self._written[iteration] = path

    def forget_after(self, iteration: int) -> None:
        """The run goes back: later files are of what will be trained anew."""
        self._written = {i: p for i, p in self._written.items() if i <= iteration}

    def leave_to_files(self, ring: SnapshotRing[Any]) -> None:
        """Let files stand for all proven snapshots but the newest.

        Not where MMEngine's checkpoints cannot hold all of it: several averages.
        """
        proven = [entry for entry in ring.entries if entry.left == 0]
        known = {entry.iter for entry in ring.entries}
        self._written = {i: p for i, p in self._written.items() if i in known}
        if not (self._may_leave and self._whole) or len(ema_hooks(self._runner)) > 1:
            return
        for entry in proven[:-1]:
            path = self._written.get(entry.iter, "")
            if isinstance(entry.item, Snapshot) and osp.exists(path):
                own = HostCopier().copy(own_part(self._runner, entry.item.state))
                ring.reusable, entry.item = entry.item, Part(entry.iter, own, path)

    def recycle(self, ring: SnapshotRing[Any]) -> None:
        """Let the next copy use the memory of one that nobody needs."""
        if isinstance(ring.reusable, Snapshot):
            self._copier.recycle(ring.reusable.state)
        ring.reusable = None

    def whole(self, item: Snapshot | Part) -> Snapshot | None:
        """The snapshot, or None if it cannot be had; a collective on every rank."""
        mine = self._mine(item) if self._whole else None
        if not self._shared:
            return None if any_rank(mine is None) else mine
        sent = None if mine is None else [mine.iter, mine.state, mine.layouts]
        sent = from_rank_0(sent)
        if mine is not None or sent is None:
            return mine
        iteration, state, layouts = sent
        own = item.own if isinstance(item, Part) else {}
        return Snapshot(iteration, with_own_part(state, own), layouts)

    @property
    def keeps_what_it_reads(self) -> bool:
        """Whether a snapshot that was had again is held by this process."""
        return self._whole

    def _mine(self, item: Snapshot | Part) -> Snapshot | None:
        if isinstance(item, Snapshot):
            return item
        words = damage(item.path, self._ignore)
        try:
            if words is None:
                file: dict[str, Any] = read_safely(item.path, map_location="cpu")
                read = Snapshot.of_file(self._runner, file)
                state = with_own_part(read.state, item.own)
                return Snapshot(item.iter, state, read.layouts)
        except Exception as e:  # on one rank alone it would leave the others waiting
            words = repr(e)
        warn(f"{item.path} cannot be gone back to: {words}.")
        return None

    def _see_that_it_fits(self, needed: int) -> None:
        free = free_host_bytes()
        if free is None:
            return
        if not self._told:
            self._told = True
            text = (
                f"a snapshot takes {needed / 2**20:.0f} MiB of host memory, of "
                f"{free / 2**20:.0f} MiB that are free on this machine; two are in "
                "memory when older ones have their files"
            )
            print_log(f"[amp_hooks] {text}.", logger="current")
        if needed > free * _SHARE + self._copier.recycled:
            raise MemoryError(
                f"it takes {needed / 2**20:.0f} MiB of host memory, and "
                f"{free / 2**20:.0f} MiB are free"
            )
