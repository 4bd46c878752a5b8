"""Values in a config, which may hold anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def dig(tree: Any, *path: str) -> Any:
    """``tree[path[0]][path[1]]...``, ``None`` where that leads nowhere."""
    for key in path:
        if not isinstance(tree, Mapping):
            return None
        tree = tree.get(key)
    return tree


def items_of(tree: Any) -> list[dict[str, Any]]:
    """The dicts of a list of them, or of a single one."""
    if isinstance(tree, dict):
        return [tree]
    if not isinstance(tree, (list, tuple)):
        return []
    return [item for item in tree if isinstance(item, dict)]


def plain_number(value: Any) -> float | None:
    """A number, None of anything else; a switch is none."""
    usable = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if usable else None
