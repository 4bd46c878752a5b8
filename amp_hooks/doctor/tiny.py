"""A model that trains in milliseconds, for looking at what trains it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from torch import Tensor, nn

CHANNELS, PIXELS, CLASSES = 8, 16, 4


class TinyModel(BaseModel):
    """A convolution, a BatchNorm and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, CHANNELS, 3), nn.BatchNorm2d(CHANNELS), nn.ReLU()
        )
        self.fc_cls = nn.Linear(CHANNELS, CLASSES)

    def forward(self, inputs: Tensor, labels: Tensor, mode: str = "loss") -> Any:
        """The loss, or the logits (n, CLASSES) of images (n, 3, PIXELS, PIXELS)."""
        logits = self.fc_cls(self.backbone(inputs).mean((2, 3)))
        if mode != "loss":
            return logits
        return dict(loss_cls=F.cross_entropy(logits.float(), labels))


def images(number: int) -> tuple[Tensor, Tensor]:
    """Noise, and a class of each that a convolution can learn: its brightness."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, CLASSES, (number,), generator=generator)
    noise = torch.randn(number, 3, PIXELS, PIXELS, generator=generator)
    return noise + labels[:, None, None, None], labels


def optim_wrapper(device: str, precision: str) -> dict[str, Any]:
    """Its config, as for training there.

    Args:
        device: 'cuda' or 'cpu', where FP16 is rehearsed.
        precision: 'float32', 'float16' or 'bfloat16'.
    """
    optimizer = dict(type="SGD", lr=0.05, momentum=0.9)
    if precision == "float32":
        return dict(type="OptimWrapper", optimizer=optimizer)
    amp = "AmpOptimWrapper" if device == "cuda" else "amp_hooks.CpuAmpOptimWrapper"
    wrapper = dict(type=amp, dtype=precision, optimizer=optimizer)
    if precision == "bfloat16":
        wrapper["loss_scale"] = dict(enabled=False)
    return wrapper
