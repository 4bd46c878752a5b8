"""Lines of code, shown to a person."""

from __future__ import annotations

import linecache
import os
import sys
import traceback

import torch

_HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_TORCH = os.path.dirname(os.path.abspath(torch.__file__))
# Files of torch and of this package are on the way to every operation.
_ON_THE_WAY = (_TORCH + os.sep, _HERE + os.sep, "<")


def _shown(path: str, line: int, function: str) -> str:
    short = path.rpartition("site-packages" + os.sep)[2]  # the whole, if not there
    return f"{short}:{line} in {function}"


def caller() -> tuple[str, str]:
    """Where the model's own code called what runs now.

    Returns:
        ``file:line in function``, and the line.
    """
    frame = sys._getframe(1)
    while frame.f_code.co_filename.startswith(_ON_THE_WAY) and frame.f_back is not None:
        frame = frame.f_back
    path = frame.f_code.co_filename
    code = linecache.getline(path, frame.f_lineno).strip()
    return _shown(path, frame.f_lineno, frame.f_code.co_name), code


def raised_at(error: BaseException) -> str:
    """Where the model's own code raised an exception, or called what raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [f for f in frames if not f.filename.startswith(_ON_THE_WAY)]
    if not theirs:
        return "unknown"
    last = theirs[-1]
    return _shown(last.filename, last.lineno or 0, last.name)
