"""Are the packages there, do they load, and were they tested together?"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec

from ..engine.installed import NEEDED, check_installed
from ..errors import MissingError
from .rows import BROKEN, NOTE, Row
from .tested import outside, together

_MMCV = (
    "Install the mmcv that was built for your torch and CUDA, and that your mmdet "
    "accepts: https://mmcv.readthedocs.io/en/latest/get_started/installation.html"
)


def check() -> Iterator[Row]:
    """What is installed; amp_hooks needs torch and MMEngine only."""
    yield Row("Python", platform.python_version())
    try:
        check_installed()
    except MissingError as e:
        yield Row("torch, mmengine", str(e), BROKEN, "Install what is named.")
        return
    found = {"python": platform.python_version()}
    for name in NEEDED:
        found[name] = str(import_module(name).__version__)
        yield _version(name, found[name])
    for name in ("mmcv", "mmdet"):
        # Not by importing it: one that is there and does not load is another matter.
        if find_spec(name) is None:
            needed = name == "mmcv" and find_spec("mmdet") is not None
            yield Row(
                name,
                "not installed",
                BROKEN if needed else NOTE,
                _MMCV
                if name == "mmcv"
                else "pip install mmdet, to train its detectors.",
            )
            continue
        try:
            found[name] = str(import_module(name).__version__)
        except Exception as e:  # mmdet asserts that it likes its mmcv
            yield Row(name, f"does not load: {type(e).__name__}: {e}", BROKEN, _MMCV)
        else:
            yield _version(name, found[name])
    good = together(found)
    yield Row(
        "these versions",
        "tested together" if good else "not tested together",
        NOTE if not good else "ok",
        "" if good else "If a run goes wrong, name them; page Get started has a table.",
    )


def _version(name: str, version: str) -> Row:
    how = outside(name, version)
    return Row(name, f"{version}, {how}" if how else version, NOTE if how else "ok")
