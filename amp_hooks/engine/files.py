"""Files that are either whole or not there."""

from __future__ import annotations

import contextlib
import os
from typing import Any, Callable

# Writes an object to a path, as torch.save does.
Save = Callable[[Any, str], None]


# Of torch's own writer, whose errors are RuntimeErrors.
_WRITING = ("inline_container", "Parent directory", "cannot be opened")


def of_the_disk(error: BaseException | None) -> bool:
    """Whether it was the disk that kept a file from being written: full, forbidden."""
    told = isinstance(error, RuntimeError) and any(w in str(error) for w in _WRITING)
    return told or isinstance(error, OSError)


def flush_to_disk(path: str) -> None:
    """Wait until a file's content, or a directory's entries, are on the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove(path: str) -> None:
    """Remove a file, if that is possible: one that stays costs room and no more."""
    with contextlib.suppress(OSError):
        os.remove(path)


def publish(temporary: str, path: str) -> None:
    """Give a finished temporary file its name, atomically and durably."""
    flush_to_disk(temporary)
    os.replace(temporary, path)
    # It has its name now. Some network file systems cannot flush a directory.
    with contextlib.suppress(OSError):
        flush_to_disk(os.path.dirname(os.path.abspath(path)))


def write_text(path: str, text: str) -> None:
    """Replace a small text file so that a reader sees the old or the new one whole."""
    temporary = f"{path}.tmp"
    with open(temporary, "w", encoding="utf-8") as f:
        f.write(text)
    publish(temporary, path)
