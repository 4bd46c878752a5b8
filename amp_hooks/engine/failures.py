"""A failure of ours never costs the run: it is told, and its part is switched off."""

from __future__ import annotations

import functools
import os.path as osp
import traceback
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import mmengine.dist as dist
import torch

from ..errors import OnPurpose
from .agreement import all_ranks_come_to
from .messages import warn, warn_on_any_rank
from .of_others import text_of
from .torch_fsdp import ends_recomputation

T = TypeVar("T")

_LONGEST = 4000  # characters of a traceback in the log
_DISTRIBUTED = osp.dirname(torch.distributed.__file__)
_PACKAGE = osp.dirname(osp.dirname(osp.abspath(__file__)))


class Failures:
    """Calls what is ours, and bears what it raises.

    The owner of a call is a hook, or what several hooks share. One whose call has
    raised is off from then on: it is not called any more, and what it had put into the
    model, the optimizer and the runner is taken away. Training goes on as if it had not
    been there. Exceptions :class:`.OnPurpose`, and errors of the device, which belong
    to whatever ran on it before, go on their way; so does what fails on one of several
    ranks only, if they do it together.

    Attributes:
        calm: Nothing has failed.
        off: Owners that are switched off.
        on_failure: Called as ``on_failure(part=, where=, error=)`` with strings.
    """

    def __init__(self) -> None:
        self.calm = True
        self.off: weakref.WeakSet[Any] = weakref.WeakSet()
        self.on_failure: Callable[..., None] = lambda **line: None
        self._undo: dict[int, tuple[Any, Callable[[], Any] | None]] = {}
        self._essential: set[int] = set()

    def register(
        self, owner: Any, undo: Callable[[], Any], *, essential: bool = False
    ) -> None:
        """Let an owner be known.

        Args:
            owner: What ``call`` and ``bear`` are going to be told.
            undo: Takes away what it has put into the run.
            essential: All others depend on it: if it fails, everything is off.
        """
        self._undo[id(owner)] = owner, undo
        if essential:
            self._essential.add(id(owner))

    def call(
        self,
        owner: Any,
        what: Callable[..., T],
        /,
        *args: Any,
        otherwise: T,
        **kwargs: Any,
    ) -> T:
        """Call ``what``; if its owner is off, or it raises, returns ``otherwise``."""
        if not self.calm and owner in self.off:
            return otherwise
        try:
            return what(*args, **kwargs)
        except Exception as e:
            self.bear_or_raise(owner, _function(what).__name__, e)
            return otherwise

    def guarded(
        self, owner: Any, what: Callable[..., Any], otherwise: Any = None
    ) -> Callable[..., Any]:
        """A function that is called in this way, to be registered somewhere."""
        function = _function(what)

        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            # As ``call``, which would be a third of what many of these take.
            if not self.calm and owner in self.off:
                return otherwise
            try:
                return what(*args, **kwargs)
            except Exception as e:
                self.bear_or_raise(owner, function.__name__, e)
                return otherwise

        return guarded

    def bear_or_raise(self, owner: Any, where: str, error: Exception) -> None:
        """Bear an exception that is being dealt with, if it is ours to bear."""
        if not self.is_ours(owner, where, error):
            raise
        self.bear(owner, where, error)

    def is_ours(self, owner: Any, where: str, error: Exception) -> bool:
        """Whether to bear an exception in our code, on this rank or on all of them.

        Of what several ranks do together none can fail alone: the others would wait for
        it, or go on with other weights. Where all fail alike, all go on without.
        """
        if isinstance(error, OnPurpose) or ends_recomputation(error):
            return False
        if of_the_device(error) or of_another_rank(error):
            return False
        together = getattr(owner, "together", True) and dist.get_world_size() > 1
        if not together or owner in self.off:
            return True
        name, at = _name(owner), f"{where} ({place(error)})"
        if all_ranks_come_to(f"{name} {at}"):
            return True
        warn_on_any_rank(
            f"{name} failed in {at} on this rank, and not on all of them, which do "
            "this together: the run ends. This is a fault of amp_hooks; please report "
            "it with the traceback, and until it is mended leave it out of "
            "custom_hooks."
        )
        return False

    def bear(self, owner: Any, where: str, error: Exception) -> None:
        """Switch the owner off, and tell it, once."""
        if owner in self.off:
            return
        everything = id(owner) in self._essential
        name = "amp_hooks" if everything else _name(owner)
        text = f"{type(error).__name__}: {text_of(error)}"
        where = f"{where} ({place(error)})"
        known = dict(self._undo) if everything else {}
        known.setdefault(id(owner), self._undo.pop(id(owner), (owner, None)))
        # The last to come is the first to go.
        left = [e for ending in reversed(known.values()) for e in self._end(*ending)]
        tell = warn if getattr(owner, "together", True) else warn_on_any_rank
        tell(
            f"{name} failed in {where}: {text}. This is a fault of amp_hooks, not of "
            f"the run, which goes on without {name}. "
            + "".join(f"It could not be taken away whole ({e}). " for e in left)
            + "Please report it with the traceback; until it is mended, leave it out "
            f"of custom_hooks.\n{traceback_of(error)}"
        )
        try:
            self.on_failure(part=name, where=where, error=text)
        except Exception as e:
            warn(f"and it could not be written down: {e!r}.")

    def clear(self) -> None:
        """Training is over: nothing is kept of the run."""
        self._undo.clear()
        self._essential.clear()
        self.on_failure = lambda **line: None

    def _end(self, owner: Any, undo: Callable[[], Any] | None) -> list[str]:
        self.calm = False
        self.off.add(owner)
        try:
            if undo is not None:
                undo()
        except Exception as e:
            return [repr(e)]
        return []


def of_the_device(error: BaseException) -> bool:
    """Whether a kernel has failed: told by whatever waits for the device next."""
    kinds = getattr(torch, "AcceleratorError", ())  # since torch 2.8
    return isinstance(error, kinds) or text_of(error).startswith("CUDA error")


def of_another_rank(error: BaseException) -> bool:
    """Whether a collective has failed, for another rank is gone or has not come."""
    frames = traceback.extract_tb(error.__traceback__)
    inside = bool(frames) and frames[-1].filename.startswith(_DISTRIBUTED)
    return inside and isinstance(error, RuntimeError)


def _name(owner: Any) -> str:
    """Of a part of a hook its own, else that of its class."""
    return str(getattr(owner, "name", type(owner).__name__))


def _function(what: Callable[..., Any]) -> Any:
    """What has a name of its own: of a partial, what it calls."""
    return what.func if isinstance(what, functools.partial) else what


def traceback_of(error: BaseException) -> str:
    """As Python prints it; its end, if it is long."""
    lines = traceback.format_exception(type(error), error, error.__traceback__)
    return "".join(lines)[-_LONGEST:].rstrip()


def place(error: BaseException) -> str:
    """Where in this package it was raised, or passed: file and line."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if f.filename.startswith(_PACKAGE)] or frames
    inner = [f for f in ours if not f.filename.endswith("engine/failures.py")] or ours
    if not inner:
        return "?"
    return (
        f"{osp.relpath(inner[-1].filename, osp.dirname(_PACKAGE))}:{inner[-1].lineno}"
    )
