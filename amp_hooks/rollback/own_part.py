"""What a process keeps for itself of a snapshot that is elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mmengine.runner import Runner

from ..engine.averaging import ema_hooks
from ..engine.named import named_buffers, named_parameters
from ..engine.run import bare_model
from ..engine.tensors import map_tensors


@dataclass(frozen=True)
class Part:
    """A snapshot that is in a file, or in the memory of rank 0.

    Attributes:
        iter: Iterations that were complete when it was taken.
        own: What is this process's own: buffers, which DDP does not average, and those
            of EMA. Empty if the file is of an earlier process.
        path: The file, if it is in one.
    """

    iter: int
    own: dict[str, Any] = field(default_factory=dict)
    path: str = ""


def own_part(runner: Runner, state: dict[str, Any]) -> dict[str, Any]:
    """That part of the learned state, by reference.

    Args:
        runner: Whose state it is.
        state: As from :func:`learned_state`.
    """
    # Also under second names, by which they would be loaded last.
    named = named_buffers(bare_model(runner), remove_duplicate=False)
    buffers = {name for name, _ in named}
    averages = []
    for hook, average in zip(ema_hooks(runner), state["ema"]):
        learned = {name for name, _ in named_parameters(hook.ema_model)}
        averages.append({k: v for k, v in average.items() if k not in learned})
    return dict(
        model={k: v for k, v in state["model"].items() if k in buffers},
        buffers=state.get("buffers", {}),
        ema=averages,
    )


def with_own_part(state: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """The state with that part put into it."""
    if not own:
        return state
    whole = map_tensors(lambda t: t, state)
    whole["model"].update(own["model"])
    whole["buffers"] = own["buffers"]
    for average, mine in zip(whole["ema"], own["ema"]):
        average.update(mine)
    return whole
