"""Let MMEngine's FSDPStrategy read what RollbackHook has written."""

from __future__ import annotations

from typing import Any

import mmengine.dist as dist

from ..engine.run import any_rank, bare_model
from ..engine.safe_read import read_safely
from ..engine.sharded import is_sharded, load_part, misfits, units_of
from ..engine.words import first_names
from ..errors import NoCheckpointError
from .checkpoint_file import part_of_rank, parts_of


def unfit(runner: Any, path: str) -> str | None:
    """Why a checkpoint is of another kind of run, in words; None if it is of this."""
    parts, ranks = len(parts_of(path)), dist.get_world_size()
    if not is_sharded(runner):
        return "it is of a sharded model, and this one is not" if parts else None
    if not parts:
        return "it is of a model that was not sharded, and this one is"
    meta = _meta(path)
    had = meta.get("ranks", parts)
    if had != ranks:
        return f"it is of a model sharded over {had} ranks, and there are {ranks}"
    if parts != ranks:
        return f"of its parts, {ranks} of them, {ranks - parts} are not there"
    if meta.get("units") not in (None, units_of(runner)):
        return "it is of a model sharded in other units: auto_wrap_policy has changed"
    return None


def _meta(path: str) -> dict[str, Any]:
    """Of the first part; empty if there is none that can be read."""
    try:
        first = read_safely(parts_of(path)[0], map_location="cpu", mmap=True)
        return dict(first["meta"])
    except Exception:  # FSDP's own, for one
        return {}


def read_own_parts(runner: Any) -> None:
    """Let the strategy of a sharded run load checkpoints of RollbackHook; once.

    Each rank's holds its part of every parameter and of the optimizer's state, as they
    are. MMEngine's own hold ShardedTensors, which torch's weights_only refuses, and
    its ``load_optim_state_dict`` gives torch 2.1 and later their arguments in the order
    of 2.0.
    """
    strategy = getattr(runner, "strategy", None)
    if strategy is None or not is_sharded(runner) or hasattr(strategy, "reads_parts"):
        return
    load, load_optimizer = strategy.load_checkpoint, strategy.load_optim_state_dict

    def load_checkpoint(filename: str, **kwargs: Any) -> Any:
        if "ranks" not in _meta(filename):  # not one of ours
            return load(filename, **kwargs)
        if words := unfit(runner, filename):
            raise NoCheckpointError(f"{words}, so it cannot be loaded:\n{filename}")
        path = part_of_rank(filename, dist.get_rank())
        checkpoint: dict[str, Any] = read_safely(path, map_location="cpu")
        others = misfits(bare_model(runner), checkpoint["state_dict"])
        if any_rank(bool(others)):
            raise NoCheckpointError(
                "the model has changed since, and parts of its parameters are of other "
                f"sizes ({first_names(others) or 'on another rank'}):\n{filename}"
            )
        if (callback := kwargs.get("callback")) is not None:
            callback(checkpoint)
        load_part(runner, checkpoint.pop("state_dict"))
        return checkpoint

    def load_optim_state_dict(state: dict[str, Any]) -> None:
        of_fsdp = any(isinstance(p, str) for p in state["param_groups"][0]["params"])
        if of_fsdp:
            load_optimizer(state)
        else:
            strategy.optim_wrapper.load_state_dict(state)

    vars(strategy).update(
        load_checkpoint=load_checkpoint,
        load_optim_state_dict=load_optim_state_dict,
        reads_parts=True,
    )
