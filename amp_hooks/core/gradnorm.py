"""Gradient norms without unscaling, clipping or waiting."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def parameter_grad_norms(params: Sequence[Tensor]) -> Tensor | None:
    """L2 norm of each gradient, as one 1-d tensor in the order of ``params``.

    Gradients that are missing count as 0; sparse ones by their values. Returns
    ``None`` if no parameter has a gradient.
    """
    grads = {i: p.grad.detach() for i, p in enumerate(params) if p.grad is not None}
    if not grads:
        return None
    dense = [g.coalesce().values() if g.is_sparse else g for g in grads.values()]
    norms = torch._foreach_norm(dense)
    device = dense[0].device
    zero = torch.zeros((), device=device)
    placed = dict(zip(grads, norms))
    return torch.stack(
        [
            placed[i].to(device).float() if i in placed else zero
            for i in range(len(params))
        ]
    )


def group_norms(
    norms: Tensor, groups: dict[str, list[int]], scale: Tensor | None
) -> dict[str, Tensor]:
    """Unscaled norm of each group, and of everything under the name ``''``.

    Args:
        norms: 1-d tensor from :func:`parameter_grad_norms`.
        groups: Indices into ``norms`` by group name.
        scale: The loss scale that the gradients carry, a tensor of one element, or
            ``None``.

    Returns:
        0-d tensors on the device of ``norms``; NaN or infinite if a gradient is.
    """
    if scale is not None:
        norms = norms / scale.to(norms.device)
    result = {"": torch.linalg.vector_norm(norms)}
    for name, indices in groups.items():
        result[name] = torch.linalg.vector_norm(norms[indices])
    return result
