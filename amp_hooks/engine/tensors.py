"""Tensors in nested state, values that are not finite, and gradient norms."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from . import private, torch_api

# What torch's optimizers keep of the gradients.
_AVERAGES = set(
    "momentum_buffer exp_avg exp_avg_sq max_exp_avg_sq exp_inf square_avg grad_avg "
    "acc_delta sum prev ax".split()
)


def named_tensors(
    tree: Any, prefix: str = "", look_into: Callable[[Any], Any] | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Yield ``(path, tensor)`` for every tensor in nested dicts, lists and tuples.

    Args:
        tree: What holds them.
        prefix: Its own path.
        look_into: Gives what any other object in it consists of; ``()`` for nothing.
    """
    if isinstance(tree, Tensor):
        yield prefix, tree
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            path = f"{prefix}.{key}" if prefix else str(key)
            yield from named_tensors(value, path, look_into)
    elif isinstance(tree, (list, tuple)):
        for i, value in enumerate(tree):
            yield from named_tensors(value, f"{prefix}[{i}]", look_into)
    elif look_into is not None:
        yield from named_tensors(look_into(tree), prefix, look_into)


@torch.no_grad()
def nonfinite_names(tree: Any, limit: int = 5) -> list[str]:
    """Paths of floating-point tensors in ``tree`` that hold NaN or infinity.

    Args:
        tree: Nested dicts, lists and tuples of tensors; other values are ignored.
        limit: At most so many paths are returned.

    Returns:
        The first paths, empty if every value is finite. A clean tree costs one
        device-to-host copy per device, however many tensors it has.
    """
    by_device: dict[torch.device, list[tuple[str, Tensor]]] = {}
    for name, t in named_tensors(tree):
        if measurable(t):
            by_device.setdefault(t.device, []).append((name, peak_of(t)))
    found: list[str] = []
    for pairs in by_device.values():
        peaks = torch.stack([peak for _, peak in pairs]).tolist()
        # `x - x` is 0 for finite x, and NaN, unequal to everything, otherwise.
        found += [n for (n, _), peak in zip(pairs, peaks) if peak - peak != 0.0]
    return found[:limit]


def is_bound(name: str, t: Tensor) -> bool:
    """Whether state of an optimizer is a limit, or the smallest of none so far.

    All of its values are infinite then. What torch's optimizers average overflows value
    by value, but a parameter may have one value only, so that goes by name.
    """
    return name.rpartition(".")[2] not in _AVERAGES and bool(t.isinf().all())


def peak_of(t: Tensor) -> Tensor:
    """Largest magnitude of a floating-point tensor with values, 0-d float32.

    It is NaN or infinite exactly if one of the values is; a sum could overflow, or let
    +inf and a finite value pass for large.
    """
    t = t.detach() if t.requires_grad else t
    # Of half precision in float32 at once: one launch less.
    dtype = None if t.dtype is torch.float64 else torch.float32
    peak: Tensor = torch.linalg.vector_norm(t, math.inf, dtype=dtype)
    return peak if dtype else peak.float()


def measurable(t: Tensor) -> bool:
    """Whether it is an ordinary tensor of floating-point numbers, with values.

    Not a sparse, nested or complex one, nor one of float8: torch has no norm of them.
    """
    strided = t.layout is torch.strided and not t.is_complex()
    ordinary = strided and not t.is_nested and t.is_floating_point()
    return ordinary and t.element_size() >= 2 and t.numel() > 0


def overlaps_itself(t: Tensor) -> bool:
    """Whether several of its values are one in memory (``expand``): none can be set."""
    return t.layout is torch.strided and any(
        s == 0 and n > 1 for s, n in zip(t.stride(), t.shape)
    )


def is_named_tuple(thing: Any) -> bool:
    """Whether it is a tuple whose class names its fields."""
    return isinstance(thing, tuple) and hasattr(type(thing), "_fields")


def map_tensors(f: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """Apply ``f`` to every tensor in nested dicts, lists and tuples.

    Containers are made anew, named tuples and dict subclasses as what they are; other
    values are shared.
    """
    if isinstance(tree, Tensor):
        return f(tree)
    if isinstance(tree, dict):
        mapped = {key: map_tensors(f, value) for key, value in tree.items()}
        if type(tree) is dict:
            return mapped
        try:
            result = type(tree)(mapped)
        except TypeError:  # a defaultdict, for one
            result = copy.copy(tree)
            result.clear()
            result.update(mapped)
        private.copy_metadata(tree, result)
        return result
    if is_named_tuple(tree):
        return type(tree)(*(map_tensors(f, value) for value in tree))
    if isinstance(tree, (list, tuple)):
        return type(tree)(map_tensors(f, value) for value in tree)
    return tree


@torch.no_grad()
def nonfinite_flag(x: Tensor) -> Tensor:
    """1.0 if a value is NaN or infinite, else 0.0; 0-d float32, nothing waits."""
    return torch.nan_to_num(x.float() * 0.0, nan=1.0).amax()


def gradient_values(params: Sequence[Tensor]) -> dict[int, Tensor]:
    """The gradients that there are, by index; of a sparse one its values."""
    # Under no_grad, or they would have to be detached.
    grads = [p.grad for p in params]
    found = {i: grad for i, grad in enumerate(grads) if grad is not None}
    for i in [i for i, grad in found.items() if grad.is_sparse]:
        # Coalesced, since entries of one row are summed by the optimizer.
        found[i] = found[i].coalesce().values()
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
    norms = torch_api.norms_of(list(grads.values()))
    device = norms[0].device
    if len({norm.device for norm in norms}) > 1:
        norms = [norm.to(device) for norm in norms]
    if len(norms) == len(params):
        return torch.stack(norms)
    # Zeros fill the gaps: an index made from a list would be a copy to the device.
    placed = dict(zip(grads, norms))
    zero = norms[0].new_zeros(())
    return torch.stack([placed.get(i, zero) for i in range(len(params))])
