"""What of a checkpoint can be read back, found out before it is written."""

from __future__ import annotations

import io
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from typing import Any

import torch
from mmengine.logging import HistoryBuffer
from torch import Tensor

from ..engine.messages import WarnOnce
from ..engine.safe_read import read_safely
from ..engine.words import first_names

# These hold what was learned: tensors and numbers.
_LEARNED = ("state_dict", "optimizer", "ema_state_dict")
_PLAIN = (type(None), bool, int, float, complex, str, bytes)
_UNREADABLE = object()


class Made:
    """Is pickled as a call, so that it comes back as what the call gives."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self._call = function, args

    @property
    def factory(self) -> Any:
        """What a defaultdict makes its values of; else ``None``."""
        function, args = self._call
        return args[0] if function is defaultdict else None

    def __reduce__(self) -> tuple[Any, ...]:
        return self._call


class ReadableParts:
    """Puts the parts of checkpoints into a form that a resume can read."""

    def __init__(self) -> None:
        self._warn = WarnOnce()

    def keep_types(self, checkpoint: dict[str, Any]) -> None:
        """Let deques and defaultdicts come back as such; the rest stays as it is."""
        for key in checkpoint.keys() - set(_LEARNED):
            try:
                checkpoint[key] = _stored(checkpoint[key], key, None)
            except RecursionError:  # it holds itself; pickle knows how to write that
                continue

    def leave_out(self, checkpoint: dict[str, Any]) -> None:
        """Leave out what could not be read back, and tell of it, once."""
        bad: list[str] = []
        for key in [key for key in checkpoint if key not in _LEARNED]:
            try:
                value = _stored(checkpoint[key], key, bad)
            except RecursionError:
                continue
            if value is _UNREADABLE:
                del checkpoint[key]
            else:
                checkpoint[key] = value
        if bad:
            self._warn(
                f"{first_names(bad)} in the checkpoint cannot be read back: torch's "
                "weights_only protection, which a resume needs, does not know the "
                "class. Auto-rollback checkpoints go without it; no resume is possible "
                "from those of CheckpointHook that hold it. Make plain numbers, "
                "strings, lists or dicts of it."
            )


def _stored(value: Any, path: str, bad: list[str] | None) -> Any:
    """The value in a form that is readable; _UNREADABLE if there is none.

    Args:
        value: Any part of a checkpoint.
        path: Its place.
        bad: Gets places and classes of what is not; ``None``: do not look.
    """
    kind = type(value)
    if kind in _PLAIN or isinstance(value, (Tensor, HistoryBuffer)):
        return value
    if kind is Made and (bad is None or _comes_back(value.factory)):
        return value
    if kind in (dict, OrderedDict):
        stored = {k: _stored(v, f"{path}.{k}", bad) for k, v in value.items()}
        unreadable = [k for k in stored if stored[k] is _UNREADABLE]
        if all(stored[k] is v for k, v in value.items()):
            return value
        return kind((k, v) for k, v in stored.items() if k not in unreadable)
    if kind in (list, tuple, deque):
        items = [_stored(v, f"{path}[{i}]", bad) for i, v in enumerate(value)]
        if any(item is _UNREADABLE for item in items):
            return _UNREADABLE
        if kind is deque:
            return Made(deque, items, value.maxlen)
        same = all(a is b for a, b in zip(items, value))
        return value if same else kind(items)
    if kind is defaultdict and (bad is None or _comes_back(value.default_factory)):
        of_items = _stored(dict(value), path, bad)
        return Made(defaultdict, value.default_factory, of_items)
    if bad is None or _comes_back(value):
        return value
    bad.append(f"{path} ({kind.__module__}.{kind.__qualname__})")
    return _UNREADABLE


def _comes_back(value: Any) -> bool:
    file = io.BytesIO()
    try:
        torch.save(value, file)
        file.seek(0)
        read_safely(file)
    except Exception:  # of its own way to be pickled
        return False
    return True
