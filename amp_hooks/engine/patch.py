"""Attributes of one object, replaced for a while."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any


def replace(thing: Any, name: str, value: Any, stack: ExitStack) -> None:
    """Give one object an attribute of its own, until the stack is closed."""
    own = vars(thing)
    if name in own:
        stack.callback(setattr, thing, name, own[name])
    else:
        stack.callback(delattr, thing, name)
    setattr(thing, name, value)
