"""Where a run trains, as far as a config can tell."""

from __future__ import annotations

from mmengine.device import get_device


def trains_on_cpu() -> bool:
    """Whether mixed precision has to be rehearsed on the CPU.

    MMEngine takes a GPU wherever torch sees one. mmcv's operators, if they were built
    without CUDA, fail there at the first call: such a run belongs on the CPU, with the
    GPU hidden from it (``CUDA_VISIBLE_DEVICES=``). Without compiled operators, as in
    mmcv-lite, and on accelerators other than CUDA's, MMEngine's choice is taken.
    """
    device = get_device()
    return device == "cpu" or (device == "cuda" and mmcv_is_for_cpu())


def mmcv_is_for_cpu() -> bool:
    """Whether mmcv has operators, and none of them for CUDA."""
    try:
        from mmcv.ops import get_compiling_cuda_version

        return bool(get_compiling_cuda_version() == "not available")
    except Exception:
        # No mmcv, no operators, or some that do not load: nothing of them is called.
        return False
