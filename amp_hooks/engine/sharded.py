"""A model of which every rank has a part: torch's FullyShardedDataParallel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mmengine.dist as mmengine_dist
import torch
import torch.distributed as dist
from mmengine.runner import Runner
from torch import Tensor, nn

from .named import named_tensors_of
from .run import bare_model
from .tensors import overlaps_itself, parameter_grad_norms
from .torch_fsdp import own_name, reshard
from .words import first_names


def is_sharded(runner: Runner) -> bool:
    """Whether each rank has a part of the model only."""
    return is_fsdp(runner.model)


def is_fsdp(model: object) -> bool:
    """Whether this is torch's FullyShardedDataParallel, or MMEngine's of it."""
    # By name: before torch 2.0 it is elsewhere, or not there.
    bases = type(model).__mro__
    return any("FullyShardedDataParallel" in base.__name__ for base in bases)


def norms_of_all_ranks(runner: Any) -> NormsOfAllRanks | None:
    """What gives the gradient norms of a sharded model; None if it is not sharded."""
    if not is_sharded(runner) or mmengine_dist.get_world_size() == 1:
        return None
    return NormsOfAllRanks(runner.model.process_group)


def model_state(runner: Runner) -> dict[str, Any]:
    """The model's state dict, by reference; of a sharded one what this rank has.

    Of each parameter that is a 1-d part of its values, or none of them, as far as they
    are parts now (:func:`as_parts`). Buffers are not sharded. Unlike FSDP's own state
    dict it takes no collective.
    """
    model = bare_model(runner)
    if not is_sharded(runner):
        return model.state_dict()
    return {name: tensor.detach() for name, tensor in named_tensors_of(model).items()}


def units_of(runner: Runner) -> list[str]:
    """The modules that are sharded as one each, by name, the model itself included.

    With these and the number of ranks, the parts are the same.
    """
    modules = runner.model.named_modules()
    return [own_name(name) for name, module in modules if is_fsdp(module)]


def misfits(model: nn.Module, saved: Mapping[str, Any]) -> list[str]:
    """Names in such a state whose part is of another size than here."""
    sizes = {name: tensor.shape for name, tensor in named_tensors_of(model).items()}
    return [n for n, t in saved.items() if sizes.get(n, t.shape) != t.shape]


def as_parts(runner: Runner) -> None:
    """Of a sharded model, let each parameter be what this rank has of it.

    It may be whole, where a forward pass has had no backward one. On all ranks alike.
    """
    if is_sharded(runner):
        reshard(runner.model)


@torch.no_grad()
def load_part(runner: Runner, saved: Mapping[str, Any]) -> None:
    """Put such a state of a sharded model back, where each value lies; on all ranks.

    Raises:
        RuntimeError: If a part is of another size than it was.
    """
    as_parts(runner)
    model = bare_model(runner)
    if others := misfits(model, saved):
        raise RuntimeError(f"parts are of other sizes now: {first_names(others)}")
    live = named_tensors_of(model)
    for name, value in saved.items():
        now = live.get(name)
        if now is not None and not overlaps_itself(now):
            now.copy_(value)


class NormsOfAllRanks:
    """Gradient norms of whole parameters, of which each rank has but a part.

    Args:
        group: The ranks that share a model.
    """

    def __init__(self, group: Any) -> None:
        self._group = group

    def __call__(
        self, params: Sequence[Tensor], factor: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """One sum over the ranks; a collective, in which all of them must meet.

        Args:
            params: An optimizer's, the same on each rank.
            factor: 1, or NaN where something on this rank is not as it must be; 0-d.

        Returns:
            The norms as of :func:`parameter_grad_norms`, but that there always are
            some, and the factor, NaN if it is on any rank; the same on every rank.
        """
        norms = parameter_grad_norms(params)
        if norms is None:
            norms = torch.zeros(len(params), device=params[0].device)
        if factor is None:
            factor = norms.new_ones(())
        # Squares of what float32 can hold.
        told = torch.cat([norms, factor.to(norms).view(1)]).double() ** 2
        # With parameters offloaded to the CPU, NCCL needs them on its own device.
        told = told.to(mmengine_dist.get_comm_device())
        dist.all_reduce(told, group=self._group)
        told = told.to(norms.device)
        return told[:-1].sqrt().float(), (told[-1] * 0 + 1).float()


def norms_of(
    params: Sequence[Tensor], sharded: NormsOfAllRanks | None
) -> Tensor | None:
    """Gradient norms, of all ranks where each has a part; None if there is none."""
    return parameter_grad_norms(params) if sharded is None else sharded(params)[0]
