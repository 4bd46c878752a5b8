"""Gradient norms by group, and clipping one that stands out from its past."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..engine import private, torch_api
from ..engine.checks import check_int, check_number


def group_norms(
    norms: Sequence[float], groups: Mapping[str, Sequence[int]]
) -> dict[str, float]:
    """L2 norm of each group, and of everything under the name ``''``.

    Args:
        norms: Of each parameter, see :func:`parameter_grad_norms`.
        groups: Indices into ``norms`` by group name.

    Returns:
        NaN or infinite if a gradient is.
    """
    result = {"": math.hypot(*norms)}
    for name, indices in groups.items():
        result[name] = math.hypot(*[norms[i] for i in indices])
    return result


class AdaptiveClip:
    """ZClip (arXiv 2504.02507): clips norms that are outliers of their running mean.

    A norm ``g`` with ``z = (g - mean) / std`` above ``z_threshold`` is brought down to
    ``mean + z_threshold**2 / z * std``, and enters the statistics with that value, so
    that one spike does not make room for the next. A norm that is not finite is left
    alone and enters nothing. All of it stays on the device.

    Args:
        z_threshold: Standard deviations above the mean that make an outlier.
        alpha: Decay of the running mean and variance per step.
        warmup: Nothing is clipped before so many finite norms were seen; until then
            mean and variance are the plain ones.
    """

    def __init__(
        self, z_threshold: float = 2.5, alpha: float = 0.97, warmup: int = 25
    ) -> None:
        owner = "adaptive_clip"
        self.z_threshold = check_number(owner, "z_threshold", z_threshold, above=0)
        self.alpha = check_number(owner, "alpha", alpha, above=0, at_most=1)
        self.warmup = check_int(owner, "warmup", warmup, 2)
        self._stats = torch.zeros(3, dtype=torch.float32)  # mean, variance, count

    @torch.no_grad()
    def coefficient(self, norm: Tensor) -> Tensor:
        """What to multiply the gradients by, a 0-d tensor in (0, 1].

        Args:
            norm: Unscaled gradient norm of this step, a 0-d tensor.
        """
        self._stats = self._stats.to(norm.device)
        mean, var, count = self._stats
        finite = torch.isfinite(norm)
        g = torch.where(finite, norm, mean)
        std = var.sqrt()
        z = (g - mean) / std.clamp_min(torch.finfo(torch.float32).tiny)
        outlier = finite & (count >= self.warmup) & (z > self.z_threshold)
        bounded = torch.where(outlier, mean + self.z_threshold**2 / z * std, g)
        weight = torch.where(count < self.warmup, 1.0 / (count + 1.0), 1.0 - self.alpha)
        delta = bounded - mean
        updated = torch.stack(
            [
                mean + weight * delta,
                (1.0 - weight) * (var + weight * delta * delta),
                count + 1.0,
            ]
        )
        self._stats = torch.where(finite, updated, self._stats)
        return torch.where(outlier, bounded / g, torch.ones_like(g))

    def state(self) -> dict[str, float]:
        """Mean, variance and count, read from the device."""
        return dict(zip(("mean", "variance", "count"), self._stats.tolist()))

    def load_state(self, state: dict[str, float]) -> None:
        """Take back what :meth:`state` gave."""
        numbers = [state[k] for k in ("mean", "variance", "count")]
        self._stats = torch.tensor(numbers, dtype=torch.float32)


@torch.no_grad()
def multiply_gradients(params: list[Tensor], coefficient: Tensor) -> None:
    """Multiply every gradient in place, scaled or not, dense or sparse."""
    by_device: dict[torch.device, list[Tensor]] = {}
    for p in params:
        if p.grad is not None:
            values = private.sparse_values(p.grad) if p.grad.is_sparse else p.grad
            by_device.setdefault(values.device, []).append(values)
    for device, grads in by_device.items():
        torch_api.multiply_all(grads, coefficient.to(device))
