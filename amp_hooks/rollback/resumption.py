"""A run that goes on from a checkpoint: which, where in the epoch, what it lacks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mmengine.dist as dist
from mmengine.hooks import Hook
from mmengine.runner import Runner

from ..engine import private
from ..engine.hook import CHECKPOINT_KEY
from ..engine.messages import warn
from ..engine.rng import set_rng_of_rank
from ..engine.runtime import Runtime
from ..engine.verdict import Verdict
from . import messages
from .epoch_position import EpochPosition, sampler_of
from .flexible import ask_before_load, cannot_be_resumed
from .lr_policy import all_param_groups, all_schedulers
from .resume import choose_resume
from .sharded_resume import read_own_parts
from .storable import ReadableParts

_KEY = "position"  # in our part of a checkpoint


class Resumption:
    """What RollbackHook does at a resume, and what a checkpoint keeps for it."""

    def __init__(self) -> None:
        ask_before_load()
        self._readable = ReadableParts()
        self._rng: list[dict[str, Any]] = []  # to be taken back
        self._position = EpochPosition()
        self._ranks: int | None = None  # of the run that saved
        self._own_seed: int | None = None  # of this process, before it resumes
        self._lacks: list[str] = []
        self._rates: list[Any] = []  # as in the checkpoint

    def choose(self, runner: Runner) -> None:
        """Choose what to resume from, before MMEngine does."""
        if self._own_seed is None:
            self._own_seed = runner.seed
            runner.register_hook(_LastBeforeSavingHook(self))
        choose_resume(runner)
        read_own_parts(runner)

    def loaded(self, checkpoint: Mapping[str, Any]) -> None:
        """Remember what of the checkpoint is soon gone."""
        parts = dict(optimizer="optimizer", param_schedulers="schedulers")
        self._lacks = [what for key, what in parts.items() if key not in checkpoint]
        self._rates = _rates_in(checkpoint)
        ours = checkpoint.get(CHECKPOINT_KEY, {})
        self._rng = ours.get("rng", [])
        kept = dict(ours.get(_KEY, {}))
        self._ranks = kept.pop("ranks", None)
        self._position.kept = kept or _written_without_us(checkpoint)

    def restore_rng(self) -> None:
        """Before the first iteration: what has been drawn since the start is undone."""
        if self._rng:
            saved, self._rng = self._rng, []
            set_rng_of_rank(saved)

    def begin(
        self, runner: Runner, resumed: bool, rollbacks: int, lr_factor: float
    ) -> None:
        """Before the first iteration of this process.

        Args:
            runner: The run.
            resumed: It goes on from a checkpoint.
            rollbacks: Before that.
            lr_factor: What the learning rate is multiplied by, for these.
        """
        ranks, self._ranks = self._ranks, dist.get_world_size()
        loop = private.train_loop(runner)
        sampler: Any = sampler_of(getattr(loop, "dataloader", None))
        fresh = getattr(sampler, "seed", None) == self._own_seed
        self._position.begin(loop, resumed, runner.seed if fresh else None)
        if not resumed:
            if (hook := cannot_be_resumed(runner)) is not None:
                warn(messages.ema_of_flexible(hook))
            return
        path = str(private.load_from(runner))
        about = dict(rollbacks=rollbacks, lr_factor=lr_factor, checkpoint=path)
        Runtime.of(runner).emit("resume", runner.iter, Verdict.HEALTHY, **about)
        if ranks not in (None, self._ranks):
            warn(messages.other_ranks(ranks, self._ranks))
        groups = all_param_groups(runner)
        # Schedules that are not there cannot be missing.
        if self._lacks and all_schedulers(runner):
            now = [group["lr"] for group in groups]
            begin = [group.get("initial_lr", group["lr"]) for group in groups]
            anew = begin if "schedulers" in self._lacks else []
            warn(messages.incomplete(path, self._lacks, self._rates, now, anew))

    def save(self, checkpoint: dict[str, Any]) -> None:
        """Put into a checkpoint what :meth:`loaded` needs, plain numbers.

        What others have put in is given a form in which it comes back as it is.
        """
        self._readable.keep_types(checkpoint)
        kept = dict(self._position.kept, ranks=self._ranks)
        checkpoint.setdefault(CHECKPOINT_KEY, {})[_KEY] = kept


class _LastBeforeSavingHook(Hook):
    """Stands behind all hooks that put something into a checkpoint, or change it.

    Args:
        resumption: Whose ``save`` it calls.
    """

    priority = "LOWEST"

    def __init__(self, resumption: Resumption) -> None:
        self._resumption = resumption

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """The last to see it."""
        failures = Runtime.of(runner).failures
        failures.call(self, self._resumption.save, checkpoint, otherwise=None)


def _written_without_us(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """How long an epoch was, as MMEngine's message hub tells; empty if it does not."""
    info = checkpoint.get("message_hub", {}).get("runtime_info", {})
    epochs, iters = info.get("max_epochs"), info.get("max_iters")
    if not epochs or not iters or iters % epochs:
        return {}
    return dict(batches=iters // epochs)


def _rates_in(checkpoint: Mapping[str, Any]) -> list[Any]:
    """Of the optimizers' groups; without these, the last that was logged."""
    optimizer = checkpoint.get("optimizer", {})
    states = [optimizer] if "param_groups" in optimizer else optimizer.values()
    groups = [g for s in states if isinstance(s, Mapping) for g in s["param_groups"]]
    rates = [group["lr"] for group in groups if "lr" in group]
    logged = checkpoint.get("message_hub", {}).get("log_scalars", {}).get("train/lr")
    return rates if rates or logged is None else [logged.current()]
