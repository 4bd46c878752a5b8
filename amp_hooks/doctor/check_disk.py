"""Could a rollback's file be written here?"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator

from ..engine.files import flush_to_disk
from .rows import FINDING, OK, Row

_SIZE = 16 << 20  # bytes that are written for a try
# Weights and momentum of a ResNet-50 detector take 0.3 GiB; there are a few of them.
_LEAST = 2.0  # GiB
_REMEDY = (
    "Train where there is room, or give RollbackHook less to keep: its snapshots are "
    "written to the run's work_dir."
)


def check() -> Iterator[Row]:
    """Write one, read it back, and see what room is left."""
    place, content = os.getcwd(), os.urandom(_SIZE)
    what = "disk, this folder"
    try:
        with tempfile.NamedTemporaryFile(dir=place, prefix=".amp_hooks_") as f:
            f.write(content)
            f.flush()
            flush_to_disk(f.name)
            f.seek(0)
            same = f.read() == content
        free = shutil.disk_usage(place).free / 2**30
    except OSError as e:
        yield Row(what, f"cannot be written: {e}", FINDING, _REMEDY)
        return
    if not same:
        yield Row(what, "what was read is not what was written", FINDING, _REMEDY)
        return
    found = f"{free:.0f} GiB free, {_SIZE >> 20} MiB written and read back"
    short = free < _LEAST
    yield Row(what, found, FINDING if short else OK, _REMEDY if short else "")
