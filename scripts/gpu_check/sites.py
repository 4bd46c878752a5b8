"""Which line of code it is that makes the host wait."""

from __future__ import annotations

import os.path as osp
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from types import FrameType
from typing import Any

import torch
from bench_counts import CountCopies, CountOperators

_spec = find_spec("amp_hooks")  # not imported: that takes seconds
_OURS = osp.dirname(_spec.origin) if _spec and _spec.origin else "amp_hooks"
_PLACES = ("mmdet", "mmengine", "mmcv", "amp_hooks")
_PASSED_OVER = (osp.dirname(torch.__file__), osp.dirname(__file__))
_PASSED_OVER_FILES = ("bench_counts.py", "warnings.py")


def site_of(frames: Iterable[FrameType]) -> str:
    """The innermost line that is neither torch's nor ours to measure with.

    Args:
        frames: From the innermost on.
    """
    for frame in frames:
        path = frame.f_code.co_filename
        if path.startswith(_PASSED_OVER) or path.endswith(_PASSED_OVER_FILES):
            continue
        return f"{_short(path)}:{frame.f_lineno}"
    return "torch"


def is_ours(site: str) -> bool:
    """Whether it is a line of amp_hooks."""
    return site.startswith("amp_hooks/")


def _short(path: str) -> str:
    if path.startswith(_OURS + osp.sep):
        return "amp_hooks/" + osp.relpath(path, _OURS)
    parts = path.split(osp.sep)
    for place in _PLACES:
        if place in parts:
            return "/".join(parts[parts.index(place) :])
    return parts[-1]


def stack() -> Iterator[FrameType]:
    """The frames of the caller, from the innermost on."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


class OperatorSites(CountOperators):
    """Where operators are called for which a GPU's host would wait.

    Args:
        found: Is counted up.
    """

    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self._found = found

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Look whether this one was counted."""
        before = self.reads + self.waits
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if self.reads + self.waits > before:
            self._found[site_of(stack())] += 1
        return result


class CopySites(CountCopies):
    """Where whole tensors are brought to the host.

    Args:
        found: Is counted up.
    """

    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self._found = found

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Look whether this one was counted."""
        before = self.copies
        result = super().__torch_function__(func, types, args, kwargs)
        if self.copies > before:
            self._found[site_of(stack())] += 1
        return result
