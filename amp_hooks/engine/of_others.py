"""Objects of the user's own, whatever their classes do when they are looked at."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


def attribute(thing: Any, name: str, default: Any = None) -> Any:
    """``getattr``, with the default also if a class of the user's own raises.

    A dict whose ``__getattr__`` is its ``__getitem__`` raises KeyError, say.
    """
    try:
        return getattr(thing, name, default)
    except Exception:
        return default


def has(thing: Any, name: str) -> bool:
    """``hasattr``; ``False`` also where a class of the user's own raises."""
    missing = object()
    return attribute(thing, name, missing) is not missing


def text_of(error: BaseException) -> str:
    """What an exception says; its class's name if it cannot say anything."""
    try:
        return str(error)
    except Exception:
        return type(error).__name__


def first_line(error: BaseException, longest: int = 200) -> str:
    """The first line of what an exception says, '' if it says nothing."""
    return text_of(error).partition("\n")[0][:longest]


def is_among(thing: object, those: Iterable[object]) -> bool:
    """Whether it is one of them itself, whatever ``==`` means to them."""
    return any(other is thing for other in those)


class ByIdentity(Generic[T]):
    """A value for each object, as long as that lives, whatever ``==`` and hash mean.

    WeakKeyDictionary asks its keys for both, and they may be of classes that have
    neither.
    """

    def __init__(self) -> None:
        self._kept: dict[int, tuple[Any, T]] = {}

    def __contains__(self, thing: object) -> bool:
        return id(thing) in self._kept

    def __getitem__(self, thing: object) -> T:
        return self._kept[id(thing)][1]

    def __setitem__(self, thing: object, value: T) -> None:
        key, kept = id(thing), self._kept
        kept[key] = weakref.ref(thing, lambda _: kept.pop(key, None)), value

    def discard(self, thing: object) -> None:
        """Forget it, if it is known."""
        self._kept.pop(id(thing), None)
