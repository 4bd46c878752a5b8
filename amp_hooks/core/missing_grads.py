"""Why no parameter of an optimizer has a gradient."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import Tensor

_SHOWN = 3


def has_gradient(params: Sequence[Tensor]) -> bool:
    """Whether any of them has one."""
    return any(p.grad is not None for p in params)


def why_no_gradient(
    params: Sequence[Tensor], names: dict[int, str], detached: bool
) -> str:
    """Say in plain words why none of them has a gradient.

    Args:
        params: The optimizer's parameters; none has a gradient.
        names: Names of the model's parameters by ``id``.
        detached: The loss itself does not require a gradient.
    """
    inside = [names[id(p)] for p in params if id(p) in names]
    trainable = [names[id(p)] for p in params if id(p) in names and p.requires_grad]
    if not inside:
        return (
            f"none of its {len(params)} parameters belongs to the model: the model, or "
            "that part of it, was built or replaced after the optimizer. Build the "
            "optimizer last"
        )
    if not trainable:
        return (
            f"all of its parameters are frozen ({_some(inside)}): requires_grad is "
            "False. Unfreeze some, or leave this optimizer out"
        )
    if detached:
        return (
            f"the loss is detached from its parameters ({_some(trainable)}): it does "
            "not require a gradient. Look for .detach(), .item() or torch.no_grad() on "
            "the way from the model's output to the loss"
        )
    return (
        f"the loss does not depend on its parameters ({_some(trainable)}): the "
        "branches that hold them were not used in this iteration"
    )


def _some(names: Collection[str]) -> str:
    shown = ", ".join(list(names)[:_SHOWN])
    return shown + (f", {len(names)} in all" if len(names) > _SHOWN else "")
