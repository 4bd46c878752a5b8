"""What is put into objects of others: attributes for a while, and calls of ours."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, Callable

from .traceable import NOTHING, Layers

# As Failures.guarded: a function, and what is returned in its place if it fails.
Guard = Callable[..., Callable[..., Any]]


def wrap(thing: Any, name: str, layer: Callable[..., Any]) -> Callable[[], None]:
    """Let a method of one object go through ``layer``.

    Args:
        thing: The object.
        name: Of its method.
        layer: Called as ``layer(original, *args, **kwargs)`` in its place.

    Returns:
        What takes it away again.
    """
    layers = vars(thing).get(name)
    if not isinstance(layers, Layers):
        # Not by setattr: a compiled module hands that on to the one within.
        layers = vars(thing)[name] = Layers(thing, name)
    layers.add(layer)

    def undo() -> None:
        layers.remove(layer)
        if not layers.layers and vars(thing).get(name) is layers:
            layers.put_back(vars(thing), name)

    return undo


def replace(thing: Any, name: str, value: Any, stack: ExitStack) -> None:
    """Give one object an attribute of its own, until the stack is closed."""
    before = vars(thing).get(name, NOTHING)

    def put_back() -> None:
        if vars(thing).get(name) is not value:
            return  # somebody else has put one on top, or taken it away
        if before is NOTHING:
            delattr(thing, name)
        else:
            setattr(thing, name, before)

    stack.callback(put_back)
    setattr(thing, name, value)


def unguarded(what: Callable[..., Any], otherwise: Any = None) -> Callable[..., Any]:
    """No guard at all: a failure of ``what`` is that of who has called it."""
    return what
