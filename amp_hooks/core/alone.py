"""Compute as if this were the only process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from .patch import replace

# Collectives whose result, of one process, is what it gave.
_IN_PLACE = ("all_reduce", "broadcast", "reduce", "broadcast_object_list", "barrier")
_GATHER = ("all_gather", "all_gather_object")
_INTO_TENSOR = ("all_gather_into_tensor", "reduce_scatter_tensor")
_IMPOSSIBLE = (
    "all_to_all all_to_all_single gather gather_object scatter scatter_object_list "
    "reduce_scatter send recv isend irecv batch_isend_irecv new_group"
).split()

# What anything else raises.
IMPOSSIBLE = "a collective that one process cannot do alone"


class _Done:
    """The handle of an asynchronous collective that has ended."""

    def wait(self, *args: Any) -> None:
        """Return at once."""

    def is_completed(self) -> bool:
        """Yes."""
        return True


@contextmanager
def alone() -> Iterator[None]:
    """No collective of ``torch.distributed`` waits for another process meanwhile.

    Code that asks is told that nothing is initialised; code that does not ask gets its
    own values back, of every process the same. What one process cannot do alone raises
    RuntimeError. A collective imported by name, before, is not reached.
    """

    def impossible(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError(IMPOSSIBLE)

    def in_place(*args: Any, async_op: bool = False, **kwargs: Any) -> _Done | None:
        return _Done() if async_op else None

    def gather(
        gathered: list[Any], own: Any, *args: Any, async_op: bool = False, **kwargs: Any
    ) -> _Done | None:
        for i, slot in enumerate(gathered):
            if isinstance(slot, torch.Tensor):
                slot.copy_(own)
            else:
                gathered[i] = own
        return _Done() if async_op else None

    def into_tensor(
        out: torch.Tensor, own: torch.Tensor, *args: Any, **kwargs: Any
    ) -> _Done | None:
        copies = -(-out.numel() // own.numel())
        out.copy_(own.flatten().repeat(copies)[: out.numel()].view_as(out))
        return _Done() if kwargs.get("async_op") else None

    with ExitStack() as stack:
        distributed = torch.distributed
        stand_ins = {
            "is_initialized": lambda: False,
            **dict.fromkeys(_IN_PLACE, in_place),
            **dict.fromkeys(_GATHER, gather),
            **dict.fromkeys(_INTO_TENSOR, into_tensor),
            **dict.fromkeys(_IMPOSSIBLE, impossible),
        }
        for name, stand_in in stand_ins.items():
            if hasattr(distributed, name):  # all of them, unless torch lacks it
                replace(distributed, name, stand_in, stack)
        yield
