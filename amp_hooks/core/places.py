"""Lines of code, shown to a person."""

from __future__ import annotations

import linecache
import os
import sys
import traceback
from collections.abc import Mapping
from types import FrameType

import torch
from torch import nn

_HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_TORCH = os.path.dirname(os.path.abspath(torch.__file__))
# Files of torch and of this package are on the way to every operation.
_ON_THE_WAY = (_TORCH + os.sep, _HERE + os.sep, "<")


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
