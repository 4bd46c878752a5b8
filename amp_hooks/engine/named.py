"""What a model consists of, by the names that its author gave.

FSDP and activation checkpointing put modules of their own between those of the model,
and their names into every name below.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from .torch_fsdp import own_name, wrapped_in


def named_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """As ``model.named_modules()``, without what torch has wrapped around them."""
    for name, module in model.named_modules():
        if wrapped_in(module) is None:
            yield own_name(name), module


def named_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """As ``model.named_parameters()``."""
    for name, parameter in model.named_parameters():
        yield own_name(name), parameter


def named_buffers(
    model: nn.Module, remove_duplicate: bool = True
) -> Iterator[tuple[str, Tensor]]:
    """As ``model.named_buffers()``."""
    for name, buffer in model.named_buffers(remove_duplicate=remove_duplicate):
        yield own_name(name), buffer


def named_tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Its parameters and its buffers."""
    return {**dict(named_parameters(model)), **dict(named_buffers(model))}


def submodule(model: nn.Module, name: str) -> nn.Module:
    """As ``model.get_submodule(name)``.

    Raises:
        AttributeError: There is none of that name.
    """
    module = _own(model)
    for part in name.split(".") if name else ():
        module = _own(module.get_submodule(part))
    return module


def _own(module: nn.Module) -> nn.Module:
    while (inside := wrapped_in(module)) is not None:
        module = inside
    return module
