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
from ..engine.run import any_rank, iter_wrappers
from ..engine.safe_read import read_safely
from ..engine.sharded import is_sharded
from ..engine.tensors import named_tensors
from .checkpoint_file import damage
from .from_rank_0 import can_be_sent, from_rank_0
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
    Where memory is short, those before the newest that is proven are left to their
    files, and where there is none for a copy none is made.

    Args:
        runner: The run.
        pinned: As :class:`HostCopier`.
        ignore: What may hold NaN or infinity, by its name in the learned state.
    """

    def __init__(self, runner: Runner, pinned: bool, ignore: Container[str]) -> None:
        self._runner, self._ignore = runner, ignore
        self._copier = HostCopier(pinned)
        several = dist.get_world_size() > 1
        alike = is_model_wrapper(runner.model) and not is_sharded(runner)
        self._shared = several and alike
        # Without DDP nobody knows whether ranks are alike: each holds its own.
        self._whole = not self._shared or dist.is_main_process()
        self._several = several
        self._written: dict[int, str] = {}  # verified files, by iteration
        self._in_file: set[int] = set()  # whose files hold all of the state
        self._bytes = 0  # of a copy
        self._begun = False

    def take(self, checkpoint: dict[str, Any] | None) -> Snapshot | Part:
        """Copy the state as it is, with the checkpoint made from it.

        Raises:
            MemoryError, RuntimeError: There is no memory for it.
        """
        state = learned_state(self._runner)
        if not self._begun:
            self._begun = True
            self._see_whether_it_can_be_sent(state)
        if not self._whole:
            own = self._copier.copy(own_part(self._runner, state))
            return Part(self._runner.iter, own)
        self._see_that_it_fits(host_bytes(state))
        state, checkpoint = self._copier.copy((state, checkpoint))
        if not self._several or self._shared:
            self._see_whether_the_file_has_it_all(state, checkpoint)
        layouts = optimizer_layouts(self._runner)
        return Snapshot(self._runner.iter, state, layouts, checkpoint)

    def written(self, iteration: int, path: str) -> None:
        """A snapshot's file is there, and was verified."""
        self._written[iteration] = path

    def forget_after(self, iteration: int) -> None:
        """The run goes back: later files are of what will be trained anew."""
        self._written = {i: p for i, p in self._written.items() if i <= iteration}

    def make_room(self, ring: SnapshotRing[Any]) -> None:
        """For one more copy: in the memory of one that nobody needs, if there is one.

        Where memory is short, files stand for all proven snapshots but the newest.
        """
        known = {entry.iter for entry in ring.entries}
        self._written = {i: p for i, p in self._written.items() if i in known}
        self._in_file &= known
        free = free_host_bytes()
        unused = ring.reusable.state if isinstance(ring.reusable, Snapshot) else {}
        scarce = free is not None and self._bytes > free * _SHARE + host_bytes(unused)
        if scarce and self._whole:
            self._leave_to_files(ring)
        if isinstance(ring.reusable, Snapshot):
            self._copier.recycle(ring.reusable.state)
        ring.reusable = None

    def _leave_to_files(self, ring: SnapshotRing[Any]) -> None:
        proven = [entry for entry in ring.entries if entry.left == 0]
        for entry in proven[:-1]:
            path = self._written.get(entry.iter, "")
            fit = entry.iter in self._in_file and osp.exists(path)
            if fit and isinstance(entry.item, Snapshot):
                own = HostCopier().copy(own_part(self._runner, entry.item.state))
                ring.reusable, entry.item = entry.item, Part(entry.iter, own, path)

    def whole(self, item: Snapshot | Part) -> Snapshot | None:
        """The snapshot, or None if it cannot be had; a collective on every rank."""
        mine = self.here(item)
        if not self._shared:
            return None if any_rank(mine is None) else mine
        sent = None if mine is None else [mine.iter, mine.state, mine.layouts]
        sent = from_rank_0(sent)
        if mine is not None or sent is None:
            return mine
        iteration, state, layouts = sent
        own = item.own if isinstance(item, Part) else {}
        for name, wrapper in iter_wrappers(self._runner.optim_wrapper):
            saved = state["optimizer"].get(name, {}).get("param_groups", [])
            for group, now in zip(saved, wrapper.optimizer.param_groups):
                for key, value in now.items():  # what could not be sent
                    group.setdefault(key, value)
        return Snapshot(iteration, with_own_part(state, own), layouts)

    @property
    def holds_all(self) -> bool:
        """Whether this process has whole snapshots, and not rank 0 for it."""
        return self._whole

    def here(self, item: Snapshot | Part) -> Snapshot | None:
        """The snapshot as this process has it, or can read it; else None."""
        if not self._whole:
            return None
        if isinstance(item, Snapshot):
            return item
        try:
            words = damage(item.path, self._ignore)
            if words is None:
                file: dict[str, Any] = read_safely(item.path, map_location="cpu")
                read = Snapshot.of_file(self._runner, file)
                state = with_own_part(read.state, item.own)
                return Snapshot(item.iter, state, read.layouts)
        except Exception as e:  # on one rank alone it would leave the others waiting
            words = repr(e)
        warn(f"it cannot be gone back to, for {words}:\n{item.path}")
        return None

    def _see_whether_it_can_be_sent(self, state: dict[str, Any]) -> None:
        """Else each rank holds its own: a lambda in a param group cannot travel."""
        if self._shared and any_rank(not can_be_sent(state)):
            self._shared, self._whole = False, True

    def _see_whether_the_file_has_it_all(
        self, state: dict[str, Any], checkpoint: dict[str, Any] | None
    ) -> None:
        """Hooks may change what is saved; tensors that they leave alone are shared."""
        if checkpoint is None or len(ema_hooks(self._runner)) > 1:
            return  # MMEngine's checkpoints hold one average
        known = {id(t) for _, t in named_tensors(checkpoint)}
        learned = [state["model"], state["optimizer"], state["ema"]]
        if all(id(t) in known for _, t in named_tensors(learned)):
            self._in_file.add(self._runner.iter)

    def _see_that_it_fits(self, needed: int) -> None:
        free = free_host_bytes()
        first, self._bytes = not self._bytes, needed
        if free is None:
            return
        if first:
            print_log(
                f"[amp_hooks] a snapshot takes {needed / 2**20:.0f} MiB of host "
                f"memory, of {free / 2**20:.0f} MiB that are free on this machine.",
                logger="current",
            )
        if needed > free * _SHARE + self._copier.recycled:
            raise MemoryError(
                f"it takes {needed / 2**20:.0f} MiB of host memory, and "
                f"{free / 2**20:.0f} MiB are free"
            )
