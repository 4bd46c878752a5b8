"""What torch.compile traces of ours, to part no graph; it passes over all the rest."""

from __future__ import annotations

import functools
from typing import Any, Callable, Protocol

import torch

NOTHING = object()

# False where torch has none, before 2.1: there it traces nothing of ours.
is_compiling = getattr(getattr(torch, "compiler", None), "is_compiling", lambda: False)


class Graphs:
    """What torch.compile makes; ``on``: there may be something of ours in them."""

    on = True


GRAPHS = Graphs()


def _passed_over() -> bool:
    return not GRAPHS.on and bool(is_compiling())


class Call:
    """What a hook is to be called with, and the call after it."""

    def __init__(self, given: tuple[Any, ...] = ()) -> None:
        self.given = given
        self.next: Call | None = None


class Later:
    """A forward hook that compiled code does not call: it keeps what it would be given.

    What a hook of ours does cannot be part of a graph, and would part it. So compiled
    code leaves it for later; whoever has put the hook into the model calls it then.

    Args:
        hook: Of any kind that returns nothing.
    """

    def __init__(self, hook: Callable[..., None]) -> None:
        self._hook = hook
        # Of what is kept the graph reads nothing: it would be compiled anew for each
        # length of a list.
        self._last = self._done = Call()
        self._open = True

    def __call__(self, *given: Any) -> None:
        """Now, or later in code that is compiled."""
        if not is_compiling():
            self._hook(*given)
        elif self._open and GRAPHS.on and torch.is_grad_enabled():  # not in evaluation
            self._last.next = self._last = Call(given)

    def catch_up(self) -> bool:
        """Call the hook with what is kept, in the order of the calls; if there is."""
        call, some = self._done.next, self._done is not self._last
        self.forget()
        while call is not None:
            self._hook(*call.given)
            call = call.next
        return some

    def forget(self) -> None:
        """Keep nothing."""
        self._last = self._done = Call()

    def close(self) -> None:
        """Keep nothing any more: compiled code goes on calling hooks that are gone."""
        self._open = False
        self.forget()


class Switch(Protocol):
    """Something that is on or off."""

    on: bool


class WhileOn:
    """Calls a forward hook of any kind while something is on."""

    def __init__(self, switch: Switch, hook: Callable[..., Any]) -> None:
        self._switch, self._hook = switch, hook

    def __call__(self, *given: Any) -> Any:
        """What the hook returns, or nothing."""
        if not self._switch.on or _passed_over():
            return None
        return self._hook(*given)


class LayerWhileOn:
    """As ``WhileOn``, for a layer around a method."""

    def __init__(self, switch: Switch, layer: Callable[..., Any]) -> None:
        self._switch, self._layer = switch, layer

    def __call__(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        """Through the layer, or past it."""
        if not self._switch.on or _passed_over():
            return original(*args, **kwargs)
        return self._layer(original, *args, **kwargs)


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
        self.own = vars(thing).get(name, NOTHING)
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
        if self.own is NOTHING:
            attributes.pop(name, None)
        else:
            attributes[name] = self.own
