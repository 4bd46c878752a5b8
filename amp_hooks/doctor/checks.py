"""Which checks there are, in which order, and what a failure of one means."""

from __future__ import annotations

from typing import NamedTuple

from .rows import BROKEN, FINDING

_REINSTALL = (
    "Install torch, mmcv and the rest anew, in versions that were tested together: "
    "page Get started of the documentation has a table."
)


class Check(NamedTuple):
    """One check: ``check()`` of a module, which yields rows.

    Attributes:
        module: Its whole name.
        what: It looks at, in the table.
        needs: Packages without which there is nothing to look at.
        failed: Its row's result if it raises, hangs or takes its process along.
        remedy: Then.
    """

    module: str
    what: str
    needs: tuple[str, ...]
    failed: str
    remedy: str


_HERE = "amp_hooks.doctor"
_BOTH = ("torch", "mmengine")
CHECKS = (
    Check(f"{_HERE}.check_versions", "versions", (), BROKEN, _REINSTALL),
    Check(f"{_HERE}.check_gpu", "GPU", ("torch",), BROKEN, _REINSTALL),
    Check(f"{_HERE}.check_operators", "mmcv's operators", _BOTH, BROKEN, _REINSTALL),
    Check(f"{_HERE}.check_precisions", "precisions", _BOTH, BROKEN, _REINSTALL),
    Check(f"{_HERE}.check_step_guard", "StepGuardHook", _BOTH, BROKEN, _REINSTALL),
    Check(
        f"{_HERE}.check_ranks",
        "several processes",
        ("torch",),
        FINDING,
        "Training on one GPU needs none of it.",
    ),
    Check(f"{_HERE}.check_disk", "disk", (), FINDING, "Train in another folder."),
)
