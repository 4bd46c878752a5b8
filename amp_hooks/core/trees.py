"""Map over nested state."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor


def map_tensors(f: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """Apply ``f`` to every tensor in nested dicts, lists and tuples.

    Containers are made anew, named tuples and dict subclasses as what they are; other
    values are shared.
    """
    if isinstance(tree, Tensor):
        return f(tree)
    if isinstance(tree, dict):
        mapped = {key: map_tensors(f, value) for key, value in tree.items()}
        if type(tree) is dict:
            return mapped
        try:
            result = type(tree)(mapped)
        except TypeError:  # a defaultdict, for one
            result = copy.copy(tree)
            result.clear()
            result.update(mapped)
        if hasattr(tree, "_metadata"):  # a module's state dict: versions of its layers
            result._metadata = tree._metadata  # type: ignore[attr-defined]
        return result
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(map_tensors(f, value) for value in tree))
    if isinstance(tree, (list, tuple)):
        return type(tree)(map_tensors(f, value) for value in tree)
    return tree
