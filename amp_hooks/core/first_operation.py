"""The operations that make values non-finite, with the line of code."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .finite import named_tensors
from .places import caller

_LIMIT = 1000  # operations remembered: masks are made by some, too


@dataclass(frozen=True)
class Operation:
    """A torch operation that gave NaN or infinity for finite values.

    Attributes:
        name: As torch calls it.
        module: Path of the module that was running.
        where: ``file:line in function``, of the first code that is not torch's.
        code: That line.
    """

    name: str
    module: str
    where: str
    code: str


class FirstOperation(TorchFunctionMode):
    """Notes such operations, in their order.

    Operations that are given an infinity or NaN as a plain number, as masks are made,
    do not count. What C++ operators of other packages do is not seen.

    Args:
        inside: Tells which module is running.

    Attributes:
        seen: The operations.
    """

    def __init__(self, inside: Callable[[], str]) -> None:
        super().__init__()
        self.seen: list[Operation] = []
        self._inside = inside
        self._off = False

    @contextmanager
    def off(self) -> Iterator[None]:
        """Do not look: these are not the model's operations."""
        self._off = True
        try:
            yield
        finally:
            self._off = False

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if self._off or len(self.seen) >= _LIMIT:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        given = (list(args), kwargs)
        # An operation in place leaves nothing of what it was given.
        in_place = name.endswith("_") and not name.endswith("__")
        before = in_place and _finite(given)
        result = func(*args, **kwargs)
        if not _finite(result) and (before or not in_place and _finite(given)):
            where, code = caller()
            self.seen.append(Operation(name, self._inside(), where, code))
        return result


@torch.no_grad()
def _finite(tree: Any) -> bool:
    """Whether all tensors and plain numbers in it are finite; none is finite, too."""
    for _, tensor in named_tensors(tree):
        if tensor.is_floating_point() and not _all_finite(tensor):
            return False
    return not _has_nonfinite_number(tree)


def _all_finite(tensor: Tensor) -> bool:
    with torch._C.DisableTorchFunction():
        return bool(torch.isfinite(tensor.detach()).all())


def _has_nonfinite_number(tree: Any) -> bool:
    if isinstance(tree, float):
        return not math.isfinite(tree)
    if isinstance(tree, dict):
        return any(_has_nonfinite_number(value) for value in tree.values())
    if isinstance(tree, (list, tuple)):
        return any(_has_nonfinite_number(value) for value in tree)
    return False
