"""Gradient norms without unscaling, clipping or waiting."""

from __future__ import annotations

import torch
from torch import Tensor


def group_norms(norms: Tensor, groups: dict[str, Tensor]) -> dict[str, Tensor]:
    """Norm of each group, and of everything under the name ``''``.

    Args:
        norms: 1-d tensor from :func:`parameter_grad_norms`.
        groups: Indices into ``norms`` by group name, 1-d tensors on its device.

    Returns:
        0-d tensors on the device of ``norms``; NaN or infinite if a gradient is.
    """
    result = {"": torch.linalg.vector_norm(norms)}
    for name, indices in groups.items():
        result[name] = torch.linalg.vector_norm(norms[indices])
    return result
