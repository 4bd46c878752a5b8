"""The end of set-up: everything imports, and mmcv's operators run where they should.

    python scripts/check_setup.py

Prints the versions and what the operators are for.
"""

from __future__ import annotations

import mmcv
import mmdet
import mmdet.models  # imports every operator
import mmengine
import tensorboard  # noqa: F401
import torch
from mmcv.ops import get_compiling_cuda_version, nms, roi_align

import amp_hooks  # noqa: F401


def run_operators(device: str) -> None:
    """Two that detectors train with, on values that show at once if they are wrong."""
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 4.1], [4, 4, 8, 8]], device=device)
    _, kept = nms(boxes, torch.tensor([0.9, 0.8, 0.7], device=device), 0.5)
    if kept.tolist() != [0, 2]:
        raise SystemExit(f"error: mmcv's nms on {device} keeps {kept.tolist()}")
    image = torch.ones(1, 1, 8, 8, device=device)
    region = torch.tensor([[0.0, 1, 1, 5, 5]], device=device)
    pooled = roi_align(image, region, 2)
    if not torch.equal(pooled.cpu(), torch.ones(1, 1, 2, 2)):
        raise SystemExit(f"error: mmcv's roi_align on {device} gives {pooled.tolist()}")


def main() -> None:
    """Check and tell."""
    print(
        f"  torch {torch.__version__} | mmengine {mmengine.__version__} | "
        f"mmcv {mmcv.__version__} | mmdet {mmdet.__version__}"
    )
    run_operators("cpu")
    cuda = get_compiling_cuda_version()
    if cuda == "not available":
        hidden = "; the GPU is hidden from demo and tests"
        print(
            "  mmcv's operators are for the CPU"
            + (hidden if torch.cuda.is_available() else "")
        )
    elif torch.cuda.is_available():
        run_operators("cuda")
        print(f"  mmcv's operators are for CUDA {cuda} and run on this GPU")
    else:
        print(f"  mmcv's operators are for CUDA {cuda} and the CPU; no GPU is visible")


if __name__ == "__main__":
    main()
