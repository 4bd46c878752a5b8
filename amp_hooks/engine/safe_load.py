"""Let torch's weights_only loading read MMEngine checkpoints, and nothing else new.

On torch >= 2.6 ``torch.load`` refuses globals that are not on its list, and MMEngine
0.10.x checkpoints hold some: the log history (``HistoryBuffer`` with numpy arrays,
mmengine#1650, #1655). They are put on the list here, so that protection stays on.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler import OneCycleLR, OneCycleParamScheduler
from mmengine.utils import digit_version

# Classes whose own plain methods a checkpoint may name. They are pickled by MMEngine as
# ``getattr(HistoryBuffer, 'mean')`` and ``getattr(OneCycleLR, '_annealing_cos')``.
_METHOD_OWNERS = (HistoryBuffer, OneCycleLR, OneCycleParamScheduler)


def _getattr_of_known_classes(owner: Any, name: str) -> Any:
    """Stands in for ``builtins.getattr`` while a checkpoint is unpickled.

    Raises:
        AttributeError: If anything is asked for but a method that one of the known
            classes defines itself.
    """
    method = None
    if any(owner is known for known in _METHOD_OWNERS) and isinstance(name, str):
        method = inspect.getattr_static(owner, name, None)
        if isinstance(method, (staticmethod, classmethod)):
            method = method.__func__
    if name.startswith("__") or not inspect.isfunction(method):
        raise AttributeError(
            f"the checkpoint asks for {name!r} of {owner!r}, which no MMEngine "
            "checkpoint needs; it is refused. Load the file only if you trust it."
        )
    return getattr(owner, name)


def _latin1(text: str, encoding: str) -> bytes:
    """Stands in for ``_codecs.encode``, which torch 2.4 does not allow.

    Pickles of protocol 2, as torch.save writes them, keep the bytes of arrays so.

    Raises:
        ValueError: Of another encoding.
    """
    if encoding != "latin1":
        raise ValueError(
            f"the checkpoint asks for encoding {encoding!r}; it is refused"
        )
    return text.encode("latin1")


def _under_name(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """The function, so that it is allowed under the name that pickles call it by."""

    def alias(*args: Any) -> Any:
        return function(*args)

    alias.__module__, alias.__name__ = name.rsplit(".", 1)
    alias.__qualname__ = alias.__name__
    return alias


@cache
def _safe_globals() -> tuple[Any, ...]:
    # Found so, because the module they are in has another place in each NumPy.
    rebuild: list[Any] = [x.__reduce__()[0] for x in (np.zeros(0), np.float64(0))]
    return (
        HistoryBuffer,
        OneCycleLR,
        OneCycleParamScheduler,
        _under_name(_getattr_of_known_classes, "builtins.getattr"),
        _under_name(_latin1, "_codecs.encode"),
        np.ndarray,
        np.dtype,
        # Pickles name numpy's private modules as they were where they were written.
        *(
            _under_name(function, f"{module}.multiarray.{function.__name__}")
            for function in rebuild
            for module in ("numpy.core", "numpy._core")
        ),
        *{type(np.dtype(c)) for c in "?bBhHiIlLqQefd"},
    )


def allow_mmengine_checkpoints() -> None:
    """Make ``torch.load(..., weights_only=True)`` accept stock MMEngine checkpoints.

    Affects the whole process and may be called again. Before torch 2.6 MMEngine itself
    loads without ``weights_only``, but RollbackHook looks at a file with it first.
    """
    allowed: list[Any] = list(_safe_globals())
    if digit_version(torch.__version__) >= digit_version("2.6.0"):
        # onedl-mmengine allows some of these for each load and then takes them away
        # from the whole process, unless they are there as pairs.
        allowed = [(f, f"{f.__module__}.{f.__name__}") for f in allowed]
    torch.serialization.add_safe_globals(allowed)
