"""Which versions were tested together: the table of README.md."""

from __future__ import annotations

from typing import NamedTuple

from ..engine.installed import minor


class Versions(NamedTuple):
    """Of what a run stands on."""

    torch: str
    python: str
    mmengine: str
    mmcv: str
    mmdet: str


TESTED = (
    Versions("2.0.1", "3.8", "0.8.0", "2.0.0", "3.0.0"),
    Versions("2.1.2", "3.9", "0.9.1", "2.1.0", "3.2.0"),
    Versions("2.3.1", "3.10", "0.10.3", "2.1.0", "3.3.0"),
    Versions("2.5.1", "3.11", "0.10.5", "2.1.0", "3.3.0"),
    Versions("2.8.0", "3.12", "0.10.7", "2.1.0", "3.3.0"),
    Versions("2.13.0", "3.11", "0.10.7", "2.1.0", "3.3.0"),
    # onedl-mmengine, onedl-mmcv, onedl-mmdetection
    Versions("2.13.0", "3.11", "0.10.12", "2.3.6", "3.5.1"),
)


def outside(name: str, version: str) -> str:
    """In which way a version is older or newer than all tested; '' if it is neither.

    Args:
        name: A field of :class:`Versions`.
        version: As the package has it.
    """
    known = sorted((getattr(each, name) for each in TESTED), key=minor)
    if minor(version) < minor(known[0]):
        return f"older than {known[0]}, the oldest tested"
    if minor(version) > minor(known[-1]):
        return f"newer than {known[-1]}, the newest tested"
    return ""


def together(found: dict[str, str]) -> bool:
    """Whether these versions, in their first two numbers, were tested together.

    Args:
        found: By name; what is missing is not compared.
    """
    return any(
        all(minor(getattr(each, name)) == minor(v) for name, v in found.items())
        for each in TESTED
    )
