"""Copies of the model, and files with it, hold nothing of ours."""

from __future__ import annotations

import functools
from collections import OrderedDict
from typing import Any

from torch import nn
from torch.jit import ScriptModule

from .traceable import Layers

_STATE = "__getstate__"


class NoTrace:
    """Stands in for ``__getstate__`` of each module, which deepcopy and pickle ask.

    Hooks and wrapped methods belong to the run. A copy would carry them on, bound to
    the model that it was made of, and a file could not be written at all.
    """

    def __init__(self) -> None:
        self._modules: list[nn.Module] = []

    def attach(self, model: nn.Module) -> None:
        """Of a model, with DDP around it if any."""
        for module in model.modules():
            if _STATE not in vars(module) and not _copies_itself(type(module)):
                vars(module)[_STATE] = functools.partial(state_without, module)
                self._modules.append(module)

    def detach(self) -> None:
        """Give the modules back as they were."""
        while self._modules:
            vars(self._modules.pop()).pop(_STATE, None)


def state_without(module: nn.Module) -> Any:
    """What a copy of the module has, without what this package has put into it."""
    theirs: Any = getattr(type(module), _STATE, None)
    stock = getattr(object, _STATE, None)  # since Python 3.11
    state: Any = vars(module) if theirs is stock else theirs(module)
    if not isinstance(state, dict):
        return state
    state = {name: value for name, value in state.items() if name != _STATE}
    ours: set[int] = set()
    for name, value in vars(module).items():
        if name not in state:
            continue
        if isinstance(value, Layers):
            value.put_back(state, name)
        elif isinstance(value, OrderedDict) and name.endswith("hooks"):
            ours |= {key for key, hook in value.items() if _is_ours(hook)}
    if ours:  # in what is called, and in what tells how
        for name, value in state.items():
            if isinstance(value, OrderedDict) and "hooks" in name:
                kept = ((key, v) for key, v in value.items() if key not in ours)
                state[name] = OrderedDict(kept)
    return state


def _copies_itself(kind: type) -> bool:
    """In a way of its own, which may take all attributes as they are."""
    for way in ("__deepcopy__", "__copy__", "__reduce__", "__reduce_ex__"):
        if getattr(kind, way, None) is not getattr(object, way, None):
            return True
    return issubclass(kind, ScriptModule)


def _is_ours(hook: Any) -> bool:
    return str(getattr(hook, "__module__", "")).startswith("amp_hooks.")
