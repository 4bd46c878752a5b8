"""What a detector computes with that has no BF16: kernels of mmcv."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from ..read.history import RunHistory

# No kernel of mmcv has BF16. By the class that a config names, what it computes with in
# training; RPNHead takes proposals with NMS, and a query decoder of the Deformable DETR
# kind names the attention nowhere.
_KERNELS = {
    "RoIAlign": "RoIAlign",
    "RoIPool": "RoIPool",
    "RoIAlignRotated": "RoIAlignRotated",
    "RPNHead": "NMS",
    "FocalLoss": "focal loss",
    "MultiScaleDeformableAttention": "deformable attention",
    "MSDeformAttnPixelDecoder": "deformable attention",
    "DeformableDETR": "deformable attention",
    "DeformableDETRHead": "deformable attention",
    "DINO": "deformable attention",
    "DINOHead": "deformable attention",
    "DDQDETR": "deformable attention",
    "GroundingDINO": "deformable attention",
    "CoDETR": "deformable attention",
    "DCN": "deformable convolution",
    "DCNv2": "deformable convolution",
    "DeformConv2d": "deformable convolution",
    "ModulatedDeformConv2d": "deformable convolution",
    "DyHead": "deformable convolution",
    "VFNetHead": "deformable convolution",
    "CTResNetNeck": "deformable convolution",
    "CentripetalHead": "deformable convolution",
    "StageCascadeRPNHead": "deformable convolution",
    "carafe": "CARAFE",
    "FPN_CARAFE": "CARAFE",
}
_TRIED = re.compile("(without|has no) bfloat16")  # as PrecisionFallbackHook says it


def without_bf16(run: RunHistory) -> list[str]:
    """By the config, and by what happened when BF16 was tried; empty if unknown."""
    found = {_KERNELS[name]: None for name in _types(run.config.get("model"))}
    for h in run.having("fallback"):
        if any(_TRIED.search(str(h.line.get(key))) for key in ("reason", "gave_up")):
            found = found or {f"an operator (tried in iteration {h.iter})": None}
    return list(found)


def _types(tree: Any) -> Iterator[str]:
    if isinstance(tree, dict):
        name = str(tree.get("type")).rsplit(".", 1)[-1]
        if name in _KERNELS:
            yield name
        tree = list(tree.values())
    if isinstance(tree, (list, tuple)):
        for item in tree:
            yield from _types(item)
