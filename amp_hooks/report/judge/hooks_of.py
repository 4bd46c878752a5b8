"""Which hooks of this package were active in a run."""

from __future__ import annotations

from typing import Any

from ...engine.config_values import items_of
from ...members import MEMBERS
from ..read.history import RunHistory

_PREFIX = "amp_hooks."


def active_hooks(run: RunHistory) -> dict[str, dict[str, Any]]:
    """Class names (numbered, if there are several) and the arguments given to each.

    From the ledger's ``start`` line; of a ledger without one, from the config.
    """
    if run.start_line:
        hooks = run.start_line.get("hooks")
        return dict(hooks) if isinstance(hooks, dict) else {}
    found: dict[str, dict[str, Any]] = {}
    for hook in items_of(run.config.get("custom_hooks")):
        name, arguments = str(hook.get("type")), dict(hook)
        if name.startswith(_PREFIX):
            arguments.pop("type")
            found[name[len(_PREFIX) :]] = arguments
    return found


def has_hook(run: RunHistory, name: str) -> bool:
    """Whether a hook of that class was active, by itself or within StabilityHook."""
    hooks = active_hooks(run)
    if any(key.split(".")[0] == name for key in hooks):
        return True
    left_out = {k for k, v in hooks.get("StabilityHook", {}).items() if not v}
    members = {member for key, member in MEMBERS.items() if key not in left_out}
    return "StabilityHook" in hooks and name in members
