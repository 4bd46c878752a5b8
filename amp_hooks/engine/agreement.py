"""Whether all ranks have come to the same point: asked where no collective can be."""

from __future__ import annotations

import time
from collections import Counter

import mmengine.dist as dist

from . import private

PATIENCE = 60.0  # seconds: below any backend's time-out, above what a batch may take
_PAUSE = 0.05  # seconds between two looks

_COMINGS: Counter[str] = Counter()  # how often all have come to a point


def all_ranks_come_to(point: str, patience: float | None = None) -> bool:
    """Wait until every rank has come to the same point.

    It is asked in the store by which the ranks have found each other, and not by a
    collective: a rank that does not come is in a collective of its own, which this one
    would be taken for.

    Args:
        point: Names it, alike on all ranks.
        patience: Seconds to wait; ``PATIENCE`` if it is not given.

    Returns:
        Whether all have come. ``False`` where there is no such store, or none any more.
    """
    store = private.store_of_the_ranks()
    if store is None:
        return False
    ranks = dist.get_world_size()
    key = f"amp_hooks/{point}/{_COMINGS[point]}"
    end = time.monotonic() + (PATIENCE if patience is None else patience)
    try:
        # A sum, for torch 2.0 cannot ask whether there is a key.
        store.add(key, 1)
        while store.add(key, 0) < ranks:
            if time.monotonic() > end:
                if store.add(key, -1) < ranks - 1:  # who comes now finds one less
                    return False
                store.add(key, 1)  # the last one has come meanwhile
                break
            time.sleep(_PAUSE)
    except RuntimeError:  # the rank that keeps the store is gone
        return False
    _COMINGS[point] += 1
    return True
