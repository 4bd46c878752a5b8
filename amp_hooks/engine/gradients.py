"""The gradients of an optimizer, and their norms, without unscaling or waiting."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import private


def gradient_values(params: Sequence[Tensor]) -> dict[int, Tensor]:
    """The gradients that there are, by index; of a sparse one its values."""
    found = {}
    for i, p in enumerate(params):
        if p.grad is not None:
            grad = p.grad.detach()
            # Coalesced, since entries of one row are summed by the optimizer.
            found[i] = grad.coalesce().values() if grad.is_sparse else grad
    return found


@torch.no_grad()
def parameter_grad_norms(params: Sequence[Tensor]) -> Tensor | None:
    """L2 norm of each gradient, as one 1-d float32 tensor in the order of ``params``.

    Gradients that are missing count as 0; sparse ones by their values. Half-precision
    ones are summed in float32. A norm beyond 3.4e38 counts as infinite. Returns
    ``None`` if no parameter has a gradient.
    """
    grads = gradient_values(params)
    if not grads:
        return None
    norms = private.norms_of(list(grads.values()))
    device = norms[0].device
    # Zeros fill the gaps: an index made from a list would be a copy to the device.
    placed = dict(zip(grads, (norm.to(device) for norm in norms)))
    zero = torch.zeros((), device=device)
    return torch.stack([placed.get(i, zero) for i in range(len(params))])
