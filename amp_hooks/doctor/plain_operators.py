"""What mmcv's operators compute, written in plain torch; slow, and easy to read."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def greedy_nms(boxes: Tensor, scores: Tensor, limit: float) -> Tensor:
    """Indices of the boxes that stay, by falling score.

    Args:
        boxes: (n, 4), as x1, y1, x2, y2.
        scores: (n,), no two alike.
        limit: The intersection over union above which the lower score goes.
    """
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    left = scores.argsort(descending=True)
    kept = []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(best)
        low = torch.maximum(boxes[best, :2], boxes[left, :2])
        high = torch.minimum(boxes[best, 2:], boxes[left, 2:])
        common = (high - low).clamp(min=0).prod(1)
        left = left[common / (area[best] + area[left] - common) <= limit]
    return torch.stack(kept)


def plain_roi_align(
    images: Tensor, rois: Tensor, size: tuple[int, int], scale: float, ratio: int
) -> Tensor:
    """Means of bilinear samples, ``ratio`` squared for each bin, aligned.

    Args:
        images: (n, c, h, w).
        rois: (k, 5), as index of the image, x1, y1, x2, y2; inside of the image.
        size: Bins of the output, (rows, columns).
        scale: Of the images, to the coordinates of the boxes.
        ratio: Samples along each side of a bin.

    Returns:
        (k, c, rows, columns)
    """
    rows, columns = (n * ratio for n in size)
    height, width = images.shape[-2:]
    out = []
    for roi in rois:
        x1, y1, x2, y2 = (roi[1:] * scale - 0.5).tolist()
        y = y1 + (torch.arange(rows) + 0.5) * (y2 - y1) / rows
        x = x1 + (torch.arange(columns) + 0.5) * (x2 - x1) / columns
        # From -1, the first pixel's centre, to 1, the last one's.
        grid = torch.stack(
            [
                (2 * x / (width - 1) - 1).expand(rows, columns),
                (2 * y / (height - 1) - 1)[:, None].expand(rows, columns),
            ],
            dim=-1,
        )
        image = images[int(roi[0])][None]
        samples = F.grid_sample(image, grid[None], align_corners=True)
        out.append(F.avg_pool2d(samples, ratio))
    return torch.cat(out)


def plain_focal_loss(
    logits: Tensor, labels: Tensor, gamma: float, alpha: float
) -> Tensor:
    """The sigmoid focal loss: the sum over the classes, the mean over the samples.

    Args:
        logits: (n, classes).
        labels: (n,), ``classes`` for background.
        gamma: The exponent of what is missing to certainty.
        alpha: The weight of the positive ones.
    """
    target = F.one_hot(labels, logits.shape[1] + 1)[:, :-1].to(logits)
    p = logits.sigmoid()
    missing = target * (1 - p) + (1 - target) * p
    weight = alpha * target + (1 - alpha) * (1 - target)
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (weight * missing**gamma * entropy).sum() / len(logits)
