"""Which GPUs does torch see, and were torch and mmcv built for them?"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch

from .rows import BROKEN, FINDING, NOTE, Row

_DRIVER = Path("/proc/driver/nvidia/version")
_REHEARSED = (
    "Training goes to the CPU, where FP16 can be rehearsed: page Precision of the "
    "documentation."
)


def check() -> Iterator[Row]:
    """The GPUs."""
    built = torch.version.cuda or getattr(torch.version, "hip", None)
    if not torch.cuda.is_available():
        yield _none(built)
        return
    known = torch.cuda.get_arch_list() if torch.version.cuda else []
    for index in range(torch.cuda.device_count()):
        one = torch.cuda.get_device_properties(index)
        found = (
            f"{one.name}, {one.total_memory / 2**30:.0f} GiB, capability "
            f"{one.major}.{one.minor}; torch was built for {built}"
        )
        if known and not any(serves(arch, one.major, one.minor) for arch in known):
            yield Row(
                f"GPU {index}",
                f"{found} and has no kernels for it: {' '.join(known)}",
                BROKEN,
                "Install a torch that was built for this GPU, and an mmcv for that.",
            )
        else:
            yield Row(f"GPU {index}", found)


def serves(arch: str, major: int, minor: int) -> bool:
    """Whether what was compiled for ``arch`` runs on a GPU of this capability.

    Args:
        arch: 'sm_86', kernels for 8.6 and later ones of 8; or 'compute_86', which is
            compiled for 8.6 and all later ones when it is needed.
        major: Of the GPU.
        minor: Of the GPU.
    """
    kind, _, number = arch.rstrip("af").partition("_")
    own = int(number[:-1]), int(number[-1])
    if kind == "sm":
        return own[0] == major and own[1] <= minor
    return own <= (major, minor)


def _none(built: str | None) -> Row:
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if not _DRIVER.exists() or hidden:
        found = "hidden by CUDA_VISIBLE_DEVICES" if hidden else "none"
        return Row("GPU", found, NOTE, _REHEARSED)
    if built is None:
        found, remedy = "this torch was built without CUDA", "Install one with CUDA."
    else:
        found = f"torch, built for CUDA {built}, sees none"
        remedy = "See nvidia-smi: a newer driver, or a torch for an older CUDA."
    return Row("GPU", f"there is an NVIDIA driver, and {found}", FINDING, remedy)
