"""Read a checkpoint with torch's weights_only protection, the run's enums included."""

from __future__ import annotations

import enum
import pickle
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any

from . import torch_api

_ENUMS: set[str] = set()  # allowed so far
_ALLOWED: dict[str, Any] = {}  # these and all others, by name


def read_safely(file: Any, **options: Any) -> Any:
    """``torch.load`` with ``weights_only=True``; no code of the file is run.

    On every torch by the same list, see :mod:`.restricted_unpickler`.

    An Enum may be in it if this process has imported its class itself. No list could
    name those of users.

    Args:
        file: A path, or a file that can be read again.
        options: Of ``torch.load``.
    """
    again = False
    while True:
        try:
            return torch_api.load_weights_only(file, **options)
        except pickle.UnpicklingError as e:
            refused = refused_global(e)
            if refused in _ALLOWED and not again:
                # Before torch 2.6 ``safe_globals`` forbids them to all as it ends.
                again = True
                torch_api.add_safe_globals(_ALLOWED)
            elif refused is None or refused in _ALLOWED or not allow_enum(refused):
                raise
        if hasattr(file, "seek"):
            file.seek(0)


def refused_global(error: BaseException) -> str | None:
    """What a file asked for that is not allowed, if that is what went wrong."""
    found = re.search(r"\bGLOBAL (\S+)", str(error))
    return found[1] if found else None


def allow_enum(name: str) -> bool:
    """Allow files to name members of an Enum; whether there is one of that name.

    Args:
        name: With its module, which is not imported for it.
    """
    module, _, own = name.rpartition(".")
    kind = getattr(sys.modules.get(module), own, None)
    if not (isinstance(kind, type) and issubclass(kind, enum.Enum)):
        return False

    def member(value: Any) -> enum.Enum:
        # Not the class itself: a file could then change its members.
        return kind(value)

    _ENUMS.add(name)
    allow_under_names([under_name(member, name)])
    return True


def allowed_enums() -> list[str]:
    """Those that files may name, for other processes to allow as well."""
    return sorted(_ENUMS)


def under_name(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """The function, so that it is allowed under the name that pickles call it by."""

    def alias(*args: Any) -> Any:
        return function(*args)

    alias.__module__, alias.__name__ = name.rsplit(".", 1)
    alias.__qualname__ = alias.__name__
    return alias


def allow_under_names(allowed: Iterable[Any]) -> None:
    """Let every load in this process accept them."""
    # onedl-mmengine allows some of these for each load and then takes them away from
    # the whole process, unless they are there as pairs.
    known = {f"{f.__module__}.{f.__name__}": f for f in allowed}
    _ALLOWED.update(known)
    torch_api.add_safe_globals(known)
