"""Run a model once more and leave nothing of it in the model."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_OF_MODULE = frozenset(vars(nn.Module()))  # its modules, parameters, hooks
_NUMBERS = (int, float, bool, str, type(None))
# Exactly these: a config, say, is a dict with a mind of its own.
_CONTAINERS = (list, dict, set, deque)


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Give buffers, and what modules keep in plain attributes, back afterwards.

    Forward passes write to both: BatchNorm to its statistics, and heads to numbers and
    lists of their own (Dynamic R-CNN's history of IoU, for one). Parameters are not
    copied: a forward pass does not change them.
    """
    with torch.no_grad():
        buffers = [
            (module, name, buffer, buffer.clone())
            for module in model.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]
    attributes = [
        (vars(module), name, value)
        for module in model.modules()
        for name, value in vars(module).items()
        if name not in _OF_MODULE and type(value) in (*_NUMBERS, *_CONTAINERS)
    ]
    containers: dict[int, tuple[Any, Any]] = {}
    for _, _, value in attributes:
        _remember(value, containers)
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, buffer, saved in buffers:
                buffer.copy_(saved)
                module._buffers[name] = buffer
        for own, name, value in attributes:
            own[name] = value
        for container, content in containers.values():
            container.clear()
            add = getattr(container, "update", None) or container.extend
            add(content)


def _remember(value: Any, containers: dict[int, tuple[Any, Any]]) -> None:
    """Shallow copies of a container and of all that it holds."""
    if type(value) not in _CONTAINERS or id(value) in containers:
        return
    containers[id(value)] = value, value.copy()
    for item in list(value.values()) if type(value) is dict else list(value):
        _remember(item, containers)
