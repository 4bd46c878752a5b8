"""What is put into objects of others: attributes for a while, and calls of ours."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

# As Failures.guarded: a function, and what is returned in its place if it fails.
Guard = Callable[..., Callable[..., Any]]


def replace(thing: Any, name: str, value: Any, stack: ExitStack) -> None:
    """Give one object an attribute of its own, until the stack is closed."""
    own = vars(thing)
    if name in own:
        stack.callback(setattr, thing, name, own[name])
    else:
        stack.callback(delattr, thing, name)
    setattr(thing, name, value)


def unguarded(what: Callable[..., Any], otherwise: Any = None) -> Callable[..., Any]:
    """No guard at all: a failure of ``what`` is that of who has called it."""
    return what
