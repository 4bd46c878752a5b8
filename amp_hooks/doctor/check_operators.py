"""Do mmcv's operators compute what plain torch computes, on the CPU and on the card?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from .plain_operators import greedy_nms, plain_focal_loss, plain_roi_align
from .rows import BROKEN, NOTE, OK, Row

_LIMIT = 1e-4  # norm of the difference over the norm, in FP32
_BUILD = (
    "Install an mmcv that was built for this torch and GPU "
    "(https://mmcv.readthedocs.io/en/latest/get_started/installation.html), or build "
    "it: scripts/mmcv_build.py in a checkout of amp_hooks."
)
_HIDE = f"Hide the GPU (CUDA_VISIBLE_DEVICES=) to train on the CPU. {_BUILD}"


def check() -> Iterator[Row]:
    """What they were compiled for, then each of them."""
    if find_spec("mmcv") is None:
        yield Row("mmcv's operators", "there is no mmcv", NOTE)
        return
    try:
        import mmcv.ops as ops
    except Exception as e:  # whatever a library that does not fit raises
        yield Row("mmcv's operators", f"{type(e).__name__}: {e}", BROKEN, _BUILD)
        return
    torch.manual_seed(0)
    gpu = torch.cuda.is_available()
    cuda = ops.get_compiling_cuda_version()
    compiled = f"compiled for {'the CPU only' if cuda == 'not available' else cuda}"
    lacks = gpu and cuda == "not available"
    found = f"{compiled} by {ops.get_compiler_version()}"
    if gpu:
        found += f"; torch was built for CUDA {torch.version.cuda}"
    yield Row(
        "mmcv's operators", found, BROKEN if lacks else OK, _HIDE if lacks else ""
    )
    yield from _rows(ops, "cpu")
    if gpu and not lacks:
        yield from _rows(ops, "cuda")


def _rows(ops: Any, device: str) -> Iterator[Row]:
    checks = {"nms": _nms, "roi_align": _roi_align}
    if device == "cuda":  # mmcv has it for the card alone
        checks["sigmoid_focal_loss"] = _focal_loss
    for name, check_one in checks.items():
        try:
            found, good = check_one(getattr(ops, name), device)
        except Exception as e:  # the others are looked at all the same
            found, good = f"{type(e).__name__}: {e}", False
        result = OK if good else BROKEN
        yield Row(f"{name}, {device}", found, result, "" if good else _BUILD)


def _nms(nms: Callable, device: str) -> tuple[str, bool]:
    boxes, scores = _boxes(400, 100.0), torch.randperm(400).float() / 400
    kept = nms(boxes.to(device), scores.to(device), iou_threshold=0.5)[1].tolist()
    wanted = greedy_nms(boxes, scores, 0.5).tolist()
    other = len(set(kept) ^ set(wanted))
    return (
        f"{len(kept)} of 400 boxes stay, {other} other than in plain torch",
        not other,
    )


def _roi_align(roi_align: Callable, device: str) -> tuple[str, bool]:
    images, grad = torch.randn(2, 4, 32, 32), torch.randn(20, 4, 7, 7)
    # Inside of the image: at its edge there is no one way to go on.
    rois = torch.cat([torch.randint(0, 2, (20, 1)).float(), 8 + _boxes(20, 50.0)], 1)

    def run(align: Callable, place: str) -> list[Tensor]:
        x = images.to(place).requires_grad_()
        out = align(x, rois.to(place), (7, 7), 0.25, 2)
        out.backward(grad.to(place))
        return [out, x.grad]

    return _compared(run(plain_roi_align, "cpu"), run(roi_align, device))


def _focal_loss(focal_loss: Callable, device: str) -> tuple[str, bool]:
    logits, labels = torch.randn(500, 20), torch.randint(0, 21, (500,))

    def run(loss: Callable, place: str) -> list[Tensor]:
        x = logits.to(place).requires_grad_()
        out = loss(x, labels.to(place), 2.0, 0.25)
        out.backward()
        return [out, x.grad]

    return _compared(run(plain_focal_loss, "cpu"), run(focal_loss, device))


def _compared(wanted: list[Tensor], got: list[Tensor]) -> tuple[str, bool]:
    """Forward, then backward."""
    off = max(
        float((b.detach().cpu() - a.detach()).norm() / a.detach().norm())
        for a, b in zip(wanted, got)
    )
    return f"off by {off:.1e} of plain torch's (limit {_LIMIT:g})", off <= _LIMIT


def _boxes(number: int, size: float) -> Tensor:
    boxes = torch.rand(number, 4) * size
    boxes[:, 2:] += boxes[:, :2] + 1
    return boxes
