"""Counts the collectives that are called from Python; DDP's own are not among them."""

import torch

COLLECTIVES = (
    "all_reduce all_gather all_gather_object all_gather_into_tensor broadcast "
    "broadcast_object_list gather gather_object reduce reduce_scatter scatter barrier"
).split()


class Collectives:
    """From now on, in this process.

    Attributes:
        calls: So far.
    """

    def __init__(self):
        self.calls = 0
        for name in COLLECTIVES:
            self._count(name)

    def _count(self, name):
        original = getattr(torch.distributed, name)

        def counted(*args, **kwargs):
            self.calls += 1
            return original(*args, **kwargs)

        setattr(torch.distributed, name, counted)
