"""Run a model once more so that nobody notices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mmengine.logging import MessageHub
from torch import nn

from .compiling import eager
from .preserved import preserved
from .rng import undisturbed_rng


@contextmanager
def unnoticed(model: nn.Module) -> Iterator[None]:
    """Nothing of it stays: in the model, in generators, in MMEngine's message hub."""
    with undisturbed_rng(), preserved(model), _hub_as_it_is(), eager():
        yield


@contextmanager
def _hub_as_it_is() -> Iterator[None]:
    """What a model logs by itself in its forward pass is not logged twice.

    Histories are added to by giving them a longer array, so that a reference to each
    will do; at the end of a long run they hold a million numbers.
    """
    hub = MessageHub.get_current_instance()
    owners = [hub.log_scalars, hub.runtime_info, *map(vars, hub.log_scalars.values())]
    kept = [(own, dict(own)) for own in owners]
    try:
        yield
    finally:
        for own, before in kept:
            own.clear()
            own.update(before)
