"""A run's state: look at it, copy it, put it back, make a checkpoint of it."""

from __future__ import annotations

import math
import time
from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import Any

import mmengine
import mmengine.dist as dist
import torch
from mmengine.runner import Runner
from mmengine.utils import get_git_hash
from torch import nn

from ..engine import private
from ..engine.averaging import ema_hooks
from ..engine.by_design import ByDesign
from ..engine.hook import CHECKPOINT_KEY
from ..engine.named import named_modules
from ..engine.run import active_scaler, bare_model, iter_wrappers, left_out_buffers
from ..engine.sharded import is_sharded, load_part, model_state, units_of
from ..engine.tensors import (
    map_tensors,
    named_tensors,
    nonfinite_names,
    overlaps_itself,
)
from .by_parameter import Layout, fit_state, fitting, layout_by_place, layout_of
from .log_history import hub_state
from .lr_policy import all_schedulers
from .storable import ReadableParts


def learned_state(runner: Runner) -> dict[str, Any]:
    """Weights, all buffers, optimizers, loss scale and EMA, by reference."""
    model = model_state(runner)
    return dict(
        model=model,
        buffers=left_out_buffers(bare_model(runner), model),
        optimizer={
            name: wrapper.state_dict()
            for name, wrapper in iter_wrappers(runner.optim_wrapper)
        },
        ema=[hook.ema_model.state_dict() for hook in ema_hooks(runner)],
    )


def nonfinite_state(runner: Runner, ignore: Container[str]) -> list[str]:
    """Names in the learned state that hold NaN or infinity, but for those to ignore.

    A loss scale of 0, from which nothing comes back, counts as well.
    """
    names = nonfinite_names(learned_state(runner), limit=1000)
    if names and isinstance(ignore, ByDesign):
        tensors = dict(named_tensors(learned_state(runner)))
        names = [name for name in names if not ignore.masks(name, tensors[name])]
    names += _nan_numbers(runner)
    for name, wrapper in iter_wrappers(runner.optim_wrapper):
        if (scaler := active_scaler(wrapper)) is not None:
            scale = scaler.get_scale()
            if not 0 < scale < math.inf:
                names.append(f"optimizer.{name}.loss_scaler.scale")
    return [name for name in names if name not in ignore]


def overflowed(runner: Runner, names: list[str]) -> bool:
    """Whether one of these tensors of the learned state holds infinity."""
    wanted = frozenset(names)
    tensors = named_tensors(learned_state(runner)) if names else ()
    return any(name in wanted and bool(t.isinf().any()) for name, t in tensors)


def _nan_numbers(runner: Runner) -> Iterator[str]:
    """Hyper-parameters; some are infinite by design, as a limit on growth."""
    for name, wrapper in iter_wrappers(runner.optim_wrapper):
        for i, group in enumerate(wrapper.optimizer.param_groups):
            for key, value in group.items():
                if isinstance(value, float) and math.isnan(value):
                    yield f"optimizer.{name}.param_groups[{i}].{key}"


@dataclass(frozen=True)
class Snapshot:
    """A copy of the learned state in host memory.

    Attributes:
        iter: Iterations that were complete when it was taken.
        state: As from :func:`learned_state`, sharing nothing with the run.
        layouts: Whose the optimizers' states are.
        checkpoint: What is to be written to a file, if anything; its tensors are those
            of ``state``.
    """

    iter: int
    state: dict[str, Any]
    layouts: dict[str, Layout]
    checkpoint: dict[str, Any] | None = None

    @classmethod
    def of_file(cls, runner: Runner, checkpoint: dict[str, Any]) -> Snapshot:
        """The learned state in a checkpoint file that this run has written."""
        emas = []
        for hook in ema_hooks(runner)[:1]:  # MMEngine's checkpoints hold one
            if "ema_state_dict" in checkpoint:
                private.swap_ema_state(hook, checkpoint)
                emas.append(checkpoint["ema_state_dict"])
        optimizer = checkpoint["optimizer"]
        names = [name for name, _ in iter_wrappers(runner.optim_wrapper)]
        state = dict(
            model=checkpoint["state_dict"],
            optimizer={"": optimizer} if names == [""] else optimizer,
            ema=emas,
        )
        hooks = checkpoint.get(CHECKPOINT_KEY, {})
        return cls(checkpoint["meta"]["iter"], state, hooks.get("layouts", {}))

    def restore(self, runner: Runner, reset_optimizer: bool = False) -> None:
        """Put the learned state back into the live objects, bit for bit.

        The position in the run stays: iteration, schedulers, and what these have
        written into the optimizers' groups, learning rate and momentum. Gradients are
        cleared, and an accumulation that had begun begins anew. What has come to the
        run since, a param group or a layer, keeps its own state.

        Args:
            runner: Whose state it was.
            reset_optimizer: Let the optimizers start without momentum and averages
                instead of those of the snapshot.
        """
        own_memory(bare_model(runner))
        if is_sharded(runner):
            load_part(runner, self.state["model"])
        else:
            _load(bare_model(runner), self.state["model"])
        self._restore_other_buffers(bare_model(runner))
        scheduled = _scheduled(runner)
        for name, wrapper in iter_wrappers(runner.optim_wrapper):
            optimizer = wrapper.optimizer
            hyper = [
                {key: group[key] for key in scheduled if _is_sound(group.get(key))}
                for group in optimizer.param_groups
            ]
            base = wrapper.base_param_settings
            # A copy: the optimizer would go on with the very tensors it is given, and
            # the wrapper takes keys out of the dict.
            saved = self.state["optimizer"].get(name)
            state = map_tensors(torch.clone, saved or wrapper.state_dict())
            if saved:
                now = layout_of(optimizer, bare_model(runner))
                then = self.layouts.get(name) or layout_by_place(saved, now)
                state = fit_state(state, then, optimizer.state_dict(), now)
            if reset_optimizer:
                state["state"] = {}
            wrapper.load_state_dict(state)
            wrapper.base_param_settings = base
            for group, kept in zip(optimizer.param_groups, hyper):
                group.update(kept)
            optimizer.zero_grad()
            private.uncount_accumulated(wrapper)
        averaged = self.state["ema"]
        for i, hook in enumerate(ema_hooks(runner)):
            own_memory(hook.ema_model)
            if i < len(averaged):
                _load(hook.ema_model, averaged[i])
            else:  # of a run that had none
                _load(hook.ema_model.module, self.state["model"])
        # Weights cast to half precision within an autocast region still open.
        torch.clear_autocast_cache()

    def _restore_other_buffers(self, model: nn.Module) -> None:
        modules = dict(named_modules(model))
        for name, saved in self.state.get("buffers", {}).items():  # a file has none
            owner, _, last = name.rpartition(".")
            module = modules.get(owner)
            if module is None:  # removed meanwhile
                continue
            live = private.buffers_of(module).get(last)
            if live is not None and live.shape == saved.shape:
                live.copy_(saved)
            else:  # replaced meanwhile
                device = saved.device if live is None else live.device
                private.buffers_of(module)[last] = saved.to(device, copy=True)


def optimizer_layouts(runner: Runner) -> dict[str, Layout]:
    """Whose the state in each optimizer's state dict is."""
    return {
        name: layout_of(wrapper.optimizer, bare_model(runner))
        for name, wrapper in iter_wrappers(runner.optim_wrapper)
    }


def _load(model: nn.Module, saved: dict[str, Any]) -> None:
    model.load_state_dict(fitting(saved, model.state_dict()), strict=False)


def own_memory(model: nn.Module) -> None:
    """Give buffers whose values share memory (``expand``) memory that can be set."""
    for module in model.modules():
        for name, buffer in private.buffers_of(module).items():
            if buffer is not None and overlaps_itself(buffer):
                private.buffers_of(module)[name] = buffer.clone()


def _is_sound(value: Any) -> bool:
    """Whether it can be trained with: somebody may have written NaN meanwhile."""
    numbers = value if isinstance(value, (list, tuple)) else [value]
    return value is not None and all(
        not isinstance(n, float) or math.isfinite(n) for n in numbers
    )


def _scheduled(runner: Runner) -> set[str]:
    """Keys of the optimizers' groups that follow the position in the run.

    The others may have been learned, as by D-Adaptation and Prodigy.
    """
    names = {"lr", "momentum", "betas"}
    names |= {
        getattr(scheduler, "param_name", "lr") for scheduler in all_schedulers(runner)
    }
    bounds = {f"{b}_{name}" for b in ("initial", "max", "min") for name in names}
    return names | bounds


class RunCheckpoint:
    """Makes what ``Runner.save_checkpoint`` writes, between two iterations.

    ``Runner.save_checkpoint`` formats the whole config and asks git for its version at
    every call, which takes longer than copying a detector; here that is done once.
    """

    def __init__(self, runner: Runner) -> None:
        self._readable = ReadableParts()
        self._meta: dict[str, Any] = dict(
            cfg=runner.cfg.pretty_text,
            seed=runner.seed,
            experiment_name=runner.experiment_name,
            mmengine_version=mmengine.__version__ + get_git_hash(),
        )
        if is_sharded(runner):
            ranks = dist.get_world_size()  # each with a file of its own
            self._meta.update(ranks=ranks, units=units_of(runner))

    def make(self, runner: Runner) -> dict[str, Any]:
        """The checkpoint, with tensors that still are the run's own.

        Every hook adds its part to it, as to any checkpoint.
        """
        now = time.strftime("%Y%m%d_%H%M%S", time.localtime())
        meta = dict(self._meta, epoch=runner.epoch, iter=runner.iter, time=now)
        if hasattr(runner.train_dataloader.dataset, "metainfo"):
            meta["dataset_meta"] = runner.train_dataloader.dataset.metainfo
        checkpoint = dict(
            meta=meta,
            state_dict=model_state(runner),
            message_hub=hub_state(runner.message_hub),
            optimizer=runner.optim_wrapper.state_dict(),
        )
        schedulers: Any = runner.param_schedulers
        if isinstance(schedulers, dict):
            checkpoint["param_schedulers"] = {
                name: [s.state_dict() for s in own] for name, own in schedulers.items()
            }
        elif schedulers is not None:
            checkpoint["param_schedulers"] = [s.state_dict() for s in schedulers]
        runner.call_hook("before_save_checkpoint", checkpoint=checkpoint)
        self._readable.leave_out(checkpoint)
        ours = checkpoint.setdefault(CHECKPOINT_KEY, {})
        ours["layouts"] = optimizer_layouts(runner)
        return checkpoint
