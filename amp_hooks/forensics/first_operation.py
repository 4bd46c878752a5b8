"""The operations that make values non-finite, with the line of code."""

from __future__ import annotations

import linecache
import math
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..engine import private
from ..engine.tensors import named_tensors

_LIMIT = 10_000  # operations remembered: masks are made by some, too
_UNINITIALISED = ("empty", "empty_like", "empty_strided", "new_empty")

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_TORCH = os.path.dirname(os.path.abspath(torch.__file__))
# Files of torch and of this package are on the way to every operation.
_ON_THE_WAY = (_TORCH + os.sep, _PACKAGE + os.sep, "<")


@dataclass(frozen=True)
class Operation:
    """A torch operation that gave NaN or infinity for finite values.

    Attributes:
        name: As torch calls it.
        module: Path of the module in whose code it stands; '' is the model itself.
        where: ``file:line in function``, of the first code that is not torch's.
        code: That line.
    """

    name: str
    module: str
    where: str
    code: str

    def __str__(self) -> str:
        """``log in bbox2delta (file:line)``."""
        place, _, function = self.where.partition(" in ")
        return f"{self.name} in {function} ({place})" if function else self.name


class FirstOperation(TorchFunctionMode):
    """Notes such operations, in their order.

    Operations that are given an infinity or NaN as a plain number, as masks are made,
    do not count. What C++ operators of other packages do is not seen.

    Args:
        names: Paths of the model's modules.

    Attributes:
        seen: The operations.
        off: It does not look any more.
    """

    def __init__(self, names: Mapping[nn.Module, str]) -> None:
        super().__init__()
        self.seen: list[Operation] = []
        self.off = False
        self._names = names

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Do not look: these are not the model's operations."""
        was, self.off = self.off, True
        try:
            yield
        finally:
            self.off = was

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if self.off or len(self.seen) >= _LIMIT or name in _UNINITIALISED:
            return func(*args, **kwargs)
        given = (list(args), kwargs)
        # An operation in place leaves nothing of what it was given.
        in_place = name.endswith("_") and not name.endswith("__")
        before = in_place and _finite(given)
        result = func(*args, **kwargs)
        if not _finite(result) and (before or not in_place and _finite(given)):
            place = caller(self._names)
            self.seen.append(Operation(name, *place))
        return result


@torch.no_grad()
def _finite(tree: Any) -> bool:
    """Whether all tensors and plain numbers in it are finite; none is finite, too."""
    for _, tensor in named_tensors(tree):
        measured = tensor.is_floating_point() or tensor.is_complex()
        if measured and not _all_finite(tensor):
            return False
    return not _has_nonfinite_number(tree)


def _all_finite(tensor: Tensor) -> bool:
    try:
        with private.without_function_modes():
            return bool(torch.isfinite(tensor.detach()).all())
    except (NotImplementedError, RuntimeError):  # of a kind that cannot be asked
        return True


def _has_nonfinite_number(tree: Any) -> bool:
    if isinstance(tree, float):
        return not math.isfinite(tree)
    if isinstance(tree, dict):
        return any(_has_nonfinite_number(value) for value in tree.values())
    if isinstance(tree, (list, tuple)):
        return any(_has_nonfinite_number(value) for value in tree)
    return False


def _shown(path: str, line: int, function: str) -> str:
    short = path.rpartition("site-packages" + os.sep)[2]  # the whole, if not there
    return f"{short}:{line} in {function}"


def caller(names: Mapping[nn.Module, str]) -> tuple[str, str, str]:
    """Where the model's own code called what runs now.

    Args:
        names: Paths of the model's modules.

    Returns:
        Path of the module whose method is running, innermost; ``file:line in
        function``; and the line.
    """
    frame: FrameType | None = sys._getframe(1)
    module, place = None, None
    while frame is not None and (module is None or place is None):
        path, owner = frame.f_code.co_filename, frame.f_locals.get("self")
        if module is None and isinstance(owner, nn.Module):
            module = names.get(owner)
        if place is None and not path.startswith(_ON_THE_WAY):
            code = linecache.getline(path, frame.f_lineno).strip()
            place = _shown(path, frame.f_lineno, frame.f_code.co_name), code
        frame = frame.f_back
    return module or "", *(place or ("unknown", ""))


def raised_at(error: BaseException) -> str:
    """Where the model's own code raised an exception, or called what raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [f for f in frames if not f.filename.startswith(_ON_THE_WAY)]
    if not theirs:
        return "unknown"
    last = theirs[-1]
    return _shown(last.filename, last.lineno or 0, last.name)
