"""Writes checkpoints in the background, so that training need not wait for the disk."""

from __future__ import annotations

import atexit
import os
import queue
import threading
import weakref
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from ..engine.files import Save, flush_to_disk, publish, remove
from ..engine.safe_read import read_safely
from ..engine.tensors import named_tensors

_WRITING: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
_AT_EXIT = 60.0  # seconds
_NONE = torch.empty(0)


@atexit.register
def _wait_for_writers() -> None:
    """However training ends: a thread in torch's writer would abort the process."""
    for thread in list(_WRITING):
        thread.join(_AT_EXIT)


@dataclass
class Written:
    """How a write ended.

    Attributes:
        path: Where the checkpoint is, or should be.
        iter: Complete iterations that it holds.
        error: Why it is not there.
    """

    path: str
    iter: int
    error: BaseException | None = None


class SnapshotWriter:
    """One checkpoint at a time, by a thread of its own.

    The file gets its name only after it was flushed to the disk, read back and
    compared with what is in memory, value by value. Otherwise nothing is left of it.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._done: queue.SimpleQueue[Written] = queue.SimpleQueue()

    @property
    def busy(self) -> bool:
        """Whether a write is under way."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, checkpoint: dict[str, Any], path: str, save: Save) -> None:
        """Begin to write; only if it is not busy.

        Args:
            checkpoint: In host memory; must not be changed until the write has ended.
            path: Where to.
            save: ``torch.save``.
        """
        written = Written(path, checkpoint["meta"]["iter"])
        # A daemon: a disk that hangs must not keep the process from ending.
        thread = threading.Thread(
            target=self._run,
            args=(checkpoint, written, save),
            name="amp_hooks snapshot writer",
            daemon=True,
        )
        try:
            thread.start()
        except RuntimeError as e:  # no more threads
            written.error = e
            self._done.put(written)
            return
        self._thread = thread
        _WRITING.add(thread)

    def collect(self, wait: float = 0.0) -> list[Written]:
        """Writes that have ended since the last call.

        Args:
            wait: Seconds to wait at most for one that is under way.
        """
        if self._thread is not None and wait:
            self._thread.join(wait)
        return [self._done.get() for _ in range(self._done.qsize())]

    def _run(self, checkpoint: dict[str, Any], written: Written, save: Save) -> None:
        folder, name = os.path.split(written.path)
        temporary = os.path.join(folder, f".{name}.tmp")
        try:
            save(checkpoint, temporary)
            flush_to_disk(temporary)
            compare(checkpoint, temporary)
            publish(temporary, written.path)
        except BaseException as e:  # whatever it is, it must not end the thread unsaid
            written.error = e
            remove(temporary)
        self._done.put(written)


def compare(checkpoint: dict[str, Any], path: str) -> None:
    """See that a file holds the tensors of a checkpoint, bit for bit.

    Raises:
        RuntimeError: Names the first that differs.
    """
    # Mapped, so that nothing more than one tensor is in memory twice.
    read = read_safely(path, map_location="cpu", mmap=True)
    on_disk = dict(named_tensors(read))
    in_memory = dict(named_tensors(checkpoint))
    if on_disk.keys() != in_memory.keys():
        raise RuntimeError(f"{path} does not hold the tensors that were saved to it.")
    for name, tensor in in_memory.items():
        if not _same(on_disk[name], tensor):
            raise RuntimeError(f"{name} in {path} is not what was saved.")


def _same(a: Tensor, b: Tensor) -> bool:
    """Bit for bit, so that NaN, which may be in what others have added, equals itself.

    What lies in memory in a way of its own is compared by what it is made of.
    """
    if (a.dtype, a.layout, a.is_nested) != (b.dtype, b.layout, b.is_nested):
        return False
    return all(
        x.shape == y.shape and torch.equal(_bits(x), _bits(y))
        for x, y in zip_longest(_parts(a.detach()), _parts(b.detach()), fillvalue=_NONE)
    )


def _parts(tensor: Tensor) -> list[Tensor]:
    if tensor.is_nested:
        return list(tensor.unbind())
    if tensor.is_quantized:
        return [tensor.int_repr()]
    if tensor.layout is torch.sparse_coo:
        tensor = tensor.coalesce()
        return [tensor.indices(), tensor.values()]
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    return [tensor if tensor.layout is torch.strided else tensor.to_dense()]


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)
