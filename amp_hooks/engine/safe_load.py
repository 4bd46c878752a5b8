"""Let torch's weights_only loading read MMEngine checkpoints, and nothing else new.

On torch >= 2.6 ``torch.load`` refuses globals that are not on its list, and MMEngine
0.10.x checkpoints hold some: the log history (``HistoryBuffer`` with numpy arrays,
mmengine#1650, #1655), and what people put into a data set's metainfo or the message
hub. They are put on the list here, so that protection stays on.
"""

from __future__ import annotations

import inspect
from collections import Counter, defaultdict, deque
from datetime import date, datetime, time, timedelta, timezone
from functools import lru_cache
from pathlib import PosixPath, WindowsPath
from typing import Any

import numpy as np
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler import OneCycleLR, OneCycleParamScheduler

from .safe_read import allow_under_names, under_name

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


def _deque(items: Any = (), maxlen: int | None = None) -> Any:
    """Stands in for ``deque``.

    As Python pickles one, its items come later, and torch gives them to lists only:
    then it comes back as a list. As RollbackHook stores one, it comes back as it was.
    """
    return deque(items, maxlen) if isinstance(items, list) else []


def _defaultdict(factory: Any = None, items: Any = None) -> Any:
    """Stands in for ``defaultdict``, as :func:`_deque`: it comes back as a dict."""
    return {} if items is None else defaultdict(factory, items)


# What people keep in a data set's metainfo or in the message hub. None of these runs
# anything when it is called.
_PLAIN = (
    *(bool, dict, float, frozenset, int, list, set, str, tuple),
    *(Counter, date, datetime, time, timedelta, timezone),
)
_PATHS = (PosixPath, WindowsPath)


@lru_cache(maxsize=None)
def _safe_globals() -> tuple[Any, ...]:
    # Found so, because the module they are in has another place in each NumPy.
    rebuild: list[Any] = [x.__reduce__()[0] for x in (np.zeros(0), np.float64(0))]
    return (
        HistoryBuffer,
        OneCycleLR,
        OneCycleParamScheduler,
        under_name(_getattr_of_known_classes, "builtins.getattr"),
        under_name(_latin1, "_codecs.encode"),
        np.ndarray,
        np.dtype,
        # Pickles name numpy's private modules as they were where they were written.
        *(
            under_name(function, f"{module}.multiarray.{function.__name__}")
            for function in rebuild
            for module in ("numpy.core", "numpy._core")
        ),
        *{type(np.dtype(c)) for c in "?bBhHiIlLqQefdFDUSMmO"},
        ConfigDict,
        *_PLAIN,
        *(
            under_name(kind, f"{module}.{kind.__name__}")
            for kind in _PATHS
            for module in ("pathlib", "pathlib._local")  # the latter of Python 3.13
        ),
        under_name(_deque, "collections.deque"),
        under_name(_defaultdict, "collections.defaultdict"),
    )


def allow_mmengine_checkpoints() -> None:
    """Make ``torch.load(..., weights_only=True)`` accept stock MMEngine checkpoints.

    Affects the whole process and may be called again. Before torch 2.6 MMEngine itself
    loads without ``weights_only``, but RollbackHook looks at a file with it first.
    """
    allow_under_names(_safe_globals())
