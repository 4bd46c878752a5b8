"""What was logged so far, for a snapshot, without copying it."""

from __future__ import annotations

import copy
from typing import Any

from mmengine.logging import HistoryBuffer, MessageHub

from ..engine import private


def hub_state(hub: MessageHub) -> dict[str, Any]:
    """As ``hub.state_dict()``, with the histories of now instead of copies of them.

    A history has a million entries, and a run twenty of them: to copy them took longer
    than to copy the model. MMEngine never writes to the arrays of a history: it makes
    new ones in every iteration. So these stay what they are.
    """
    state = private.hub_state_without_history(hub)
    resumed = state["resumed_keys"]
    state["log_scalars"].update(
        (name, copy.copy(history))
        for name, history in hub.log_scalars.items()
        if resumed.get(name, False)
    )
    return state


def replace_latest(hub: MessageHub, name: str, value: float) -> None:
    """Change what was logged last under a name, if anything was.

    In new arrays: a snapshot may hold those of now.
    """
    history = hub.log_scalars.get(name)
    if history is not None:
        values, counts = (array.copy() for array in history.data)
        values[-1:] = value
        hub.log_scalars[name] = HistoryBuffer(values, counts, history.max_length)
