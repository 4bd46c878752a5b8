"""A stand-in for ``mmcv._ext``: a few operators out of torch and torchvision.

For this check alone, where mmcv has no operators for the card: it is never installed.
There are NMS, RoIAlign and the focal loss; the others are there by name and raise when
they are called. Launches, memory and times of a detector that calls them are not those
of mmcv's own; what is asked of the hooks is the same.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int = 0) -> Tensor:
    """Indices of the boxes that stay."""
    if offset:
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    return torch.ops.torchvision.nms(boxes.float(), scores.float(), iou_threshold)


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Writes ``output``; the average of each bin only."""
    if pool_mode != 1:
        raise NotImplementedError("the stand-in's RoIAlign has no max pooling")
    output.copy_(
        torch.ops.torchvision.roi_align(
            input,
            rois.to(input.dtype),
            spatial_scale,
            aligned_height,
            aligned_width,
            sampling_ratio,
            aligned,
        )
    )


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Writes ``grad_input``."""
    grad_input.copy_(
        torch.ops.torchvision._roi_align_backward(
            grad_output,
            rois.to(grad_output.dtype),
            spatial_scale,
            aligned_height,
            aligned_width,
            *grad_input.shape,
            sampling_ratio,
            aligned,
        )
    )


def _focal(
    logits: Tensor, target: Tensor, weight: Tensor, gamma: float, alpha: float
) -> Tensor:
    # A target that is no class means background. In FP32, as the kernel has it.
    classes = logits.size(1)
    t = F.one_hot(target, classes + 1)[:, :classes].float()
    x = logits.float()
    p = x.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(x, t, reduction="none")
    hardness = (1 - p) * t + p * (1 - t)
    loss = (alpha * t + (1 - alpha) * (1 - t)) * hardness**gamma * entropy
    if weight.numel():
        loss = loss * weight[target.clamp(max=weight.numel() - 1)][:, None]
    return loss


def sigmoid_focal_loss_forward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    output: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Writes ``output``."""
    output.copy_(_focal(input, target, weight, gamma, alpha))


def sigmoid_focal_loss_backward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    grad_input: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Writes ``grad_input``."""
    with torch.enable_grad():
        x = input.detach().float().requires_grad_()
        loss = _focal(x, target, weight, gamma, alpha)
        grad_input.copy_(torch.autograd.grad(loss.sum(), x)[0])


def get_compiling_cuda_version() -> str:
    """As mmcv's."""
    return torch.version.cuda or "not available"


def get_compiler_version() -> str:
    """As mmcv's."""
    return "stand-in"


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(f"mmcv._ext.{name} is not in the stand-in")

    return missing
