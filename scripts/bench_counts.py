"""Counts for bench_overhead.py: what happens in an iteration, but for its time."""

from __future__ import annotations

import gc

import torch
import torch.distributed as dist
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

KEYS = ("host syncs", "copies", "recorder", "collectives", "launches")

# They launch nothing: memory, other names of the same memory, and a read.
NO_LAUNCH = ("detach", "alias", "empty", "empty_like", "empty_strided", "new_empty")
NO_LAUNCH += ("_local_scalar_dense", "lift_fresh", "is_same_size", "set_")
NO_LAUNCH += ("_record_function_enter_new", "_record_function_exit")


def launches_of(func, args):
    """How many kernels a GPU would be given for an operator that runs on a CPU.

    A foreach operator is one launch if its tensors are of one dtype and device, and as
    many as there are tensors if not; so it is on CUDA.
    """
    name = func._schema.name.split("::")[-1]
    if name.startswith("_foreach"):
        lists = [a for a in args if isinstance(a, (list, tuple))]
        tensors = [t for a in lists for t in a if isinstance(t, torch.Tensor)]
        kinds = {(t.dtype, t.device) for t in tensors}
        return 1 if len(kinds) == 1 else len(lists[0])
    return int(not func.is_view and name not in NO_LAUNCH)


class CountOperators(TorchDispatchMode):
    """Counts launches, and operators for which a GPU's host would wait."""

    WAITS = ("nonzero", "masked_select", "_unique2", "unique_dim", "equal")

    def __init__(self):
        super().__init__()
        self.reads = self.waits = self.collectives = self.launches = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.split("::")[-1]
        self.collectives += func.namespace == "c10d"
        self.launches += launches_of(func, args)
        self.reads += name == "_local_scalar_dense"
        by_mask = name == "index" and any(
            i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]
        )
        self.waits += name in self.WAITS or by_mask
        return func(*args, **(kwargs or {}))


class CountCopies(TorchFunctionMode):
    """Counts whole tensors brought to the host, which are no operator on a CPU."""

    def __init__(self):
        super().__init__()
        self.copies = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.copies += getattr(func, "__name__", "") in ("tolist", "cpu")
        return func(*args, **(kwargs or {}))


def count_on_gpu(events):
    """Syncs, copies and launches in a profile."""
    syncs = copies = launches = 0
    for event in events:
        name = event.name
        if event.device_type == torch.autograd.DeviceType.CUDA:
            copies += name.startswith("Memcpy DtoH")
            launches += not name.startswith(("Memcpy", "Memset"))
        # cudaDeviceSynchronize is left out: it is this script's, and the profiler's.
        syncs += name in ("cudaStreamSynchronize", "cudaEventSynchronize", "cudaMemcpy")
    return {"host syncs": syncs, "copies": copies, "launches": launches}


def held_bytes():
    """Of all tensors that Python knows, memory that several share counted once."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        # Not isinstance, which asks proxies for the class of what they stand for.
        if issubclass(type(thing), torch.Tensor):
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def count(live, iterations):
    """What happens in an iteration, on average."""
    before = live.transfers
    operators, copies = CountOperators(), CountCopies()
    if live.device == "cuda":
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
            live.run(iterations)
        found = count_on_gpu(seen.events())
    else:
        with copies, operators:
            live.run(iterations)
        read = operators.reads + copies.copies
        found = {
            "host syncs": read + operators.waits,
            "copies": read,
            "launches": operators.launches,
        }
    found["recorder"] = live.transfers - before
    # Alone, a process has no reason for a collective. Two ranks, of which one is made
    # up, give it every reason.
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        with CountOperators() as operators:
            live.run(iterations)
    finally:
        dist.destroy_process_group()
    found["collectives"] = operators.collectives
    return {key: found[key] / iterations for key in KEYS}
