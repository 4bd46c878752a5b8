"""Could several processes train together?"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed as dist

from .rows import FINDING, NOTE, Row

_PATIENCE = timedelta(seconds=20)


def check() -> Iterator[Row]:
    """A group of one, with the backend of the device."""
    if not dist.is_available():
        yield Row("torch.distributed", "not in this torch", NOTE, _one("another torch"))
        return
    yield _row("gloo", "cpu", "GLOO_SOCKET_IFNAME=lo, if the machine's name is unknown")
    if not torch.cuda.is_available():
        return
    if not dist.is_nccl_available():
        yield Row("nccl", "not in this torch", FINDING, _one("another torch"))
        return
    yield _row("nccl", "cuda", "NCCL_DEBUG=INFO to see why")


def _row(backend: str, device: str, remedy: str) -> Row:
    try:
        dist.init_process_group(
            backend, store=dist.HashStore(), rank=0, world_size=1, timeout=_PATIENCE
        )
        try:
            number = torch.ones(1, device=device)
            dist.all_reduce(number)
            found = f"a group of one, all_reduce gives {number.item():g}"
            good = number.item() == 1
        finally:
            dist.destroy_process_group()
    except Exception as e:
        return Row(backend, f"{type(e).__name__}: {e}", FINDING, _one(remedy))
    if backend == "nccl":
        found += f", NCCL {'.'.join(map(str, torch.cuda.nccl.version()))}"
    return Row(backend, found) if good else Row(backend, found, FINDING, _one(remedy))


def _one(remedy: str) -> str:
    return f"Training on one GPU needs none of it; for several: {remedy}."
