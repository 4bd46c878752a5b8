"""Where in an epoch a run is, so that a resume goes on there."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sized
from contextlib import ExitStack
from itertools import islice
from typing import Any

import torch
from mmengine.runner import EpochBasedTrainLoop
from torch.utils.data import DataLoader, IterableDataset

from ..engine import private
from ..engine.messages import warn
from ..engine.patch import replace
from ..engine.rng import undisturbed_rng

_ENOUGH = 1000  # indices that tell one order from another


class RestOfEpoch:
    """A sampler whose first pass leaves out what was trained on already.

    Nothing is loaded for that. A batch sampler that groups indices as it reads them
    reads those as well, so that the others come in the batches they would come in.
    """

    def __init__(self, sampler: Any, done: int) -> None:
        self.within, self.done = sampler, done

    def __iter__(self) -> Iterator[Any]:
        # Not before the first index is asked for: with workers, DataLoader makes two of
        # these iterators and reads one.
        done, self.done = self.done, 0
        rest = iter(self.within)
        for _ in range(done):
            next(rest, None)
        yield from rest

    def __len__(self) -> int:
        return len(self.within)

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["within"], name)


class EpochPosition:
    """Lets an epoch-based loop go on in the middle of the epoch.

    MMEngine repeats the epoch from its beginning, at later iterations: schedules run
    ahead of the data, and the run is longer by what was repeated.

    Attributes:
        kept: What a checkpoint keeps: ``batches`` of an epoch; ``shift``, the iteration
            at which epoch 0 would have begun; ``samples`` and ``seed`` of the sampler.
    """

    def __init__(self) -> None:
        self.kept: dict[str, Any] = {}

    def begin(self, loop: Any, resumed: bool, seed: int | None = None) -> None:
        """Before the first epoch of this process.

        Args:
            loop: The training loop, its iteration and epoch as read from a checkpoint.
            resumed: They were.
            seed: What the sampler's was, unless the checkpoint says; ``None``: as now.
        """
        before, self.kept = self.kept, {}
        if not isinstance(loop, EpochBasedTrainLoop):
            return
        batches, sampler, done = len(loop.dataloader), sampler_of(loop.dataloader), 0
        seeded = isinstance(getattr(sampler, "seed", None), int)
        if resumed:
            if seeded and (seed := before.get("seed", seed)) is not None:
                sampler.seed = seed
            done = self._go_on(loop, before, sampler)
        self.kept = dict(batches=batches, shift=loop.iter - done - loop.epoch * batches)
        if isinstance(sampler, Sized):
            self.kept["samples"] = len(sampler)
        if seeded:
            self.kept["seed"] = sampler.seed

    def _go_on(self, loop: EpochBasedTrainLoop, before: Any, sampler: Any) -> int:
        """Leave out what the epoch has had; the number of batches, 0 if none can be."""
        batches = len(loop.dataloader)
        then = before.get("batches", batches)
        done = int(loop.iter - loop.epoch * then - before.get("shift", 0))
        if done and "batches" not in before:
            warn(
                f"resumed at iteration {loop.iter}, at the beginning of epoch "
                f"{loop.epoch}, as MMEngine does: the checkpoint does not say how long "
                "its epochs were."
            )
            return 0
        if not done:
            return 0
        where = f"resumed at iteration {loop.iter}, in the middle of epoch {loop.epoch}"
        if why := _why_not(loop, done, then):
            warn(
                f"{where}, which is repeated from its beginning, as MMEngine does: "
                f"{why}. Schedules come to their end before the run does."
            )
            return 0
        if why := _why_another_order(sampler, before.get("samples")):
            warn(
                f"{where}, it goes on behind batch {done} of {batches}, in another "
                f"order: {why}, and some samples come twice in this epoch, some not at "
                "all."
            )
        _skip(loop, done)
        return done


def sampler_of(dataloader: Any) -> Any:
    """What gives the indices one by one."""
    within = getattr(dataloader, "batch_sampler", None)
    return getattr(within, "sampler", getattr(dataloader, "sampler", None))


def _why_another_order(sampler: Any, samples: int | None) -> str:
    if isinstance(sampler, Sized) and samples not in (None, len(sampler)):
        return f"the sampler gave {samples} samples then, and gives {len(sampler)} now"
    if not _repeats(sampler):
        return (
            f"{type(sampler).__name__} draws it anew (DefaultSampler has a seed, and "
            "does not)"
        )
    return ""


def _repeats(sampler: Any) -> bool:
    """Whether it gives an epoch's order twice: else nobody knows it any more.

    It draws from a generator, torch's own or one that it keeps, which is put back.
    """
    sampler = copy.copy(sampler)
    kept = [g for g in vars(sampler).values() if isinstance(g, torch.Generator)]
    states = [(g, g.get_state()) for g in kept]
    try:
        with undisturbed_rng():
            first, second = (list(islice(iter(sampler), _ENOUGH)) for _ in range(2))
        return bool(first == second)
    except Exception:  # of a class of the user's own; then the same is hoped for
        return True
    finally:
        for generator, state in states:
            generator.set_state(state)


def _why_not(loop: EpochBasedTrainLoop, done: int, batches: int) -> str:
    kind, now = type(loop), len(loop.dataloader)
    if now != batches:
        return f"an epoch had {batches} batches, and has {now} now"
    if not 0 < done <= batches:
        return f"by the checkpoint {done} of its {batches} batches are done"
    if kind.run_epoch is not EpochBasedTrainLoop.run_epoch:
        return f"{kind.__name__} goes through an epoch in its own way"
    if not isinstance(loop.dataloader, DataLoader):
        return f"{type(loop.dataloader).__name__} is no DataLoader of torch"
    if isinstance(loop.dataloader.dataset, IterableDataset):
        return "an IterableDataset has no order that could be entered in the middle"
    return ""


def _skip(loop: EpochBasedTrainLoop, done: int) -> None:
    """The next epoch leaves out so many batches, and counts them."""
    stack = ExitStack()
    run_epoch, run_iter = loop.run_epoch, loop.run_iter

    def rest_of_epoch() -> None:
        stack.close()  # the next one is an epoch as any other
        with ExitStack() as this_epoch:
            replace(
                loop, "run_iter", lambda i, data: run_iter(i + done, data), this_epoch
            )
            private.replace_index_sampler(
                loop.dataloader, lambda own: RestOfEpoch(own, done), this_epoch
            )
            run_epoch()

    replace(loop, "run_epoch", rest_of_epoch, stack)
