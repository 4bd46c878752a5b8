"""What is put into objects of others: attributes for a while, and calls of ours."""

from __future__ import annotations

import functools
from contextlib import ExitStack
from typing import Any, Callable

# As Failures.guarded: a function, and what is returned in its place if it fails.
Guard = Callable[..., Callable[..., Any]]


_NOTHING = object()


class Layers:
    """What a method goes through while some of ours are around it, in its place.

    They come and go in any order. One of somebody else, put on top of them, is left
    alone, and one that was there before is the original.

    Args:
        thing: Whose method it is.
        name: Of the method.
    """

    def __init__(self, thing: Any, name: str) -> None:
        original: Callable[..., Any] = getattr(thing, name)
        # Its marks too: MMEngine's schedulers look for one on ``optim_wrapper.step``,
        # and warn in every run where it is missing. First, or they would replace ours.
        functools.update_wrapper(self, original)
        self.own = vars(thing).get(name, _NOTHING)
        self.layers: list[Callable[..., Any]] = []
        self._original = self._call = original

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Through the last one first."""
        return self._call(*args, **kwargs)

    def add(self, layer: Callable[..., Any]) -> None:
        """Put one around all that there is."""
        self.layers.append(layer)
        self._arrange()

    def remove(self, layer: Callable[..., Any]) -> None:
        """Take one away, if it is there."""
        if layer in self.layers:
            self.layers.remove(layer)
            self._arrange()

    def _arrange(self) -> None:
        self._call = self._original
        for layer in self.layers:
            self._call = functools.partial(layer, self._call)

    def put_back(self, attributes: dict[str, Any], name: str) -> None:
        """Into the attributes of an object: what it had of its own, or nothing."""
        if self.own is _NOTHING:
            attributes.pop(name, None)
        else:
            attributes[name] = self.own


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
    before = vars(thing).get(name, _NOTHING)

    def put_back() -> None:
        if vars(thing).get(name) is not value:
            return  # somebody else has put one on top, or taken it away
        if before is _NOTHING:
            delattr(thing, name)
        else:
            setattr(thing, name, before)

    stack.callback(put_back)
    setattr(thing, name, value)


def unguarded(what: Callable[..., Any], otherwise: Any = None) -> Callable[..., Any]:
    """No guard at all: a failure of ``what`` is that of who has called it."""
    return what
