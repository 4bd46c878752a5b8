"""Which operators there are for the device: mmcv's own, or a stand-in."""

from __future__ import annotations

import functools
import sys
from importlib import import_module
from importlib.util import find_spec

STAND_IN = "a stand-in out of torch and torchvision"


@functools.cache
def prepare(device: str) -> str:
    """See to it that mmcv has operators; before anything else imports ``mmcv.ops``.

    Args:
        device: They are for.

    Returns:
        Whose they are, in words.

    Raises:
        RuntimeError: There are none for the device, nor torchvision to make some of.
    """
    import mmcv

    lacks = _lacks(device)
    if not lacks:
        return f"mmcv {mmcv.__version__}"
    if find_spec("torchvision") is None:
        raise RuntimeError(
            f"mmcv {mmcv.__version__} {lacks}, and there is no torchvision to take "
            "its place. Install mmcv with operators for this machine, or torchvision."
        )
    import_module("torchvision")  # registers its operators
    sys.modules["mmcv._ext"] = import_module("gpu_check.standin_ext")
    return f"{STAND_IN}: mmcv {mmcv.__version__} {lacks}"


def _lacks(device: str) -> str:
    try:
        extension = import_module("mmcv._ext")
    except ImportError as e:
        why = "" if isinstance(e, ModuleNotFoundError) else f" that load ({e})"
        return f"has no operators{why}"
    compiled_with = extension.get_compiling_cuda_version()
    if device == "cuda" and compiled_with == "not available":
        return "was built without CUDA"
    return ""
