"""Do operators compute on the card what they compute on the CPU?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from mmcv.ops import nms, roi_align
from mmdet.models.losses import FocalLoss
from torch import Tensor

from gpu_check.machine import Card
from gpu_check.operators import prepare
from gpu_check.rows import Row, judged

# Norm of the difference over the norm: forward, backward.
LIMITS = {torch.float32: 1e-4, torch.float16: 3e-2}


def check(machine: Card, place: Path) -> Iterator[Row]:
    """NMS, RoIAlign and the focal loss, forward and backward."""
    whose = prepare(machine.device)
    yield Row("whose they are", whose, numbers=dict(stand_in="stand-in" in whose))
    for dtype in machine.dtypes:
        name = str(dtype).rsplit(".", 1)[-1]
        yield _nms(machine.device, dtype, name)
        for what, errors in (
            ("RoIAlign", _roi_align(machine.device, dtype)),
            ("focal loss", _focal_loss(machine.device, dtype)),
        ):
            limit = LIMITS[dtype]
            found = f"off by {max(errors):.1e} of the CPU's (limit {limit:g})"
            good = max(errors) <= limit
            yield judged(f"{what}, {name}", found, good, errors=errors, limit=limit)


def _nms(device: str, dtype: torch.dtype, name: str) -> Row:
    """Boxes are FP32 in every precision: mmcv's kernel takes no other."""
    boxes = _boxes(2000, 300)
    scores = torch.randperm(2000).float() / 2048  # no two are one in half precision
    scores = scores.to(dtype)
    kept = [
        nms(boxes.to(d), s, iou_threshold=0.5)[1].tolist()
        for d, s in (("cpu", scores.float()), (device, scores.to(device)))
    ]
    other = len(set(kept[0]) ^ set(kept[1]))
    found = f"{len(kept[1])} of 2000 boxes stay, {other} other than on the CPU"
    return judged(f"NMS, {name}", found, not other, other=other)


def _roi_align(device: str, dtype: torch.dtype) -> list[float]:
    images, grad = torch.randn(2, 16, 64, 64), torch.randn(200, 16, 7, 7)
    rois = torch.cat([torch.randint(0, 2, (200, 1)).float(), _boxes(200, 150)], 1)

    def run(place: str, kind: torch.dtype) -> list[Tensor]:
        x = images.to(dtype).to(place, kind).requires_grad_()
        out = roi_align(x, rois.to(dtype).to(place, kind), (7, 7), 0.25)
        out.backward(grad.to(dtype).to(place, kind))
        return [out, x.grad]

    return _differences(run("cpu", torch.float32), run(device, dtype))


def _focal_loss(device: str, dtype: torch.dtype) -> list[float]:
    logits, labels = torch.randn(4000, 80), torch.randint(0, 81, (4000,))
    loss = FocalLoss(use_sigmoid=True)  # mmcv's operator on a card, torch on a CPU

    def run(place: str, kind: torch.dtype) -> list[Tensor]:
        x = logits.to(dtype).to(place, kind).requires_grad_()
        out = loss(x, labels.to(place), reduction_override="none")
        out.float().sum().backward()
        return [out, x.grad]

    return _differences(run("cpu", torch.float32), run(device, dtype))


def _differences(wanted: list[Tensor], got: list[Any]) -> list[float]:
    return [
        float((b.detach().cpu().float() - a.detach()).norm() / a.detach().norm())
        for a, b in zip(wanted, got)
    ]


def _boxes(number: int, size: float) -> Tensor:
    boxes = torch.rand(number, 4) * size
    boxes[:, 2:] += boxes[:, :2]
    return boxes
