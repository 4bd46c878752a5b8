"""Is it the weights? What those of before cost on the batch of now."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import mmengine.dist as dist
import torch
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..engine import private
from ..engine.batches import Contents
from ..engine.condition import Condition, Costs
from ..engine.patch import Guard, unguarded
from ..engine.preserved import alone
from ..engine.run import bare_model, iter_wrappers
from ..engine.runtime import Runtime
from ..engine.sharded import is_sharded
from ..engine.tensors import overlaps_itself
from ..engine.traceable import Later
from ..engine.unnoticed import unnoticed
from .run_state import Snapshot
from .snapshot_store import SnapshotStore

# Of one iteration: those of a sandwich, say, but not of a whole loop of its own.
_MOST_CALLS = 8
# Whose forward hooks belong to a model.
_LIBRARIES = ("torch.", "mmengine.", "mmcv.", "mmdet.", "amp_hooks.")


class SecondOpinion:
    """Runs the last batch with the weights of now and of before, side by side.

    Two forward passes without gradients, when a run is found ill, decide better than
    any threshold on the loss: on the same batch, with the same random numbers, ruined
    weights cost more than those of the snapshot, and healthy ones do not, whatever the
    batch costs. Weights, buffers and generators are put back bit for bit, and what the
    model counts or keeps in attributes of its own.

    Where ranks have the same weights, rank 0 alone compares, and no collective of the
    model waits for the others: a rank whose pass fails leaves none of them waiting.

    Args:
        runner: The run.
        store: Has the snapshot that a rollback would go to.
        guarded: Bears what goes wrong here.
    """

    def __init__(
        self, runner: Runner, store: SnapshotStore, guarded: Guard = unguarded
    ) -> None:
        self._runner, self._store = runner, store
        self._runtime = Runtime.of(runner)
        self._runtime.errors.attach(runner)  # to see those of torch.compile
        self._calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        model = bare_model(runner)

        # No method: a copy of the model would copy what it belongs to, the whole run.
        def note(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._note(args, kwargs)

        self._hook = Later(guarded(note))
        self._handle = model.register_forward_pre_hook(self._hook, with_kwargs=True)

    def begin_iteration(self) -> None:
        """Let go of the last batch."""
        self._hook.forget()
        self._calls.clear()

    def detach(self) -> None:
        """Take the hook away."""
        self._handle.remove()
        self._hook.close()
        self._calls.clear()
        self._runtime.second_opinion = None

    def __call__(self, ill: Condition, unasked: bool = False) -> Costs | None:
        """What the last batch costs; ``None``: cannot be told.

        A collective: call it on every rank. The mean over those that have snapshots.

        Args:
            ill: As found; whose onset says which snapshot.
            unasked: Nothing has been found. Then no forward hook of the user's is to
                be called for it, who may count on one call an iteration.
        """
        mine = [self._compare(ill, unasked)] if self._store.holds_all else []
        every = [mine]
        if dist.get_world_size() > 1:
            every = dist.all_gather_object(mine)
        answers = [costs for of_one in every for costs in of_one]
        known = [costs for costs in answers if costs is not None]
        if not known or len(known) < len(answers):
            return None
        now, before, taken_at, usual, unlike, _ = (
            sum(each) / len(known) for each in zip(*known)
        )
        compared = all(costs.compared for costs in known)
        return Costs(now, before, int(taken_at), usual, unlike, compared)

    def _note(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        muted = self._runtime.recorder.muted
        if torch.is_grad_enabled() and not muted:
            self._calls.append((args, kwargs))
            del self._calls[_MOST_CALLS:]

    def _compare(self, ill: Condition, unasked: bool) -> Costs | None:
        snapshot, then = self._store.look(self._runner.iter, ill.since)
        if snapshot is None or not ill.by_loss:
            return None
        losses = self._on_this_batch(snapshot, unasked)
        level = ill.level
        if then is None or level is None or min(then, level) <= 0:
            return None if losses is None else Costs(*losses, snapshot.iter)
        usual, compared = then / level, losses is not None
        if losses is None:
            if unasked or ill.loss_ratio is None or usual < 1:
                return None
            losses = ill.loss_ratio * level, then
        now, before = losses
        return Costs(now, before, snapshot.iter, usual, before / then, compared)

    def _on_this_batch(
        self, snapshot: Snapshot, unasked: bool
    ) -> tuple[float, float] | None:
        """Now and before; None: cannot be told."""
        modules = bare_model(self._runner).modules()
        waits = any(isinstance(module, DistributedDataParallel) for module in modules)
        if waits or is_sharded(self._runner):
            return None  # a pass waits for the others by itself
        if unasked and has_hooks_of_users(bare_model(self._runner)):
            return None
        # Some need gradients in their forward pass, for a penalty: the second try.
        for context in (torch.no_grad(), torch.enable_grad()):
            with suppress(Exception), context:
                return self._losses(snapshot.state["model"])
        return None  # a model of its own ways

    def _losses(self, before: dict[str, Tensor]) -> tuple[float, float]:
        model = bare_model(self._runner)
        # Not a queue of keys, nor a teacher that follows: with those of before any loss
        # that is measured on them is another one (MoCo's begins at 0.05 and ends at 9).
        state = model.state_dict(keep_vars=True)
        live = {n: t for n, t in state.items() if getattr(t, "requires_grad", False)}
        with self._weights_back():
            now = self._loss()
            for name, value in before.items():
                if name in live and not overlaps_itself(live[name]):
                    live[name].detach().copy_(value)
            torch.clear_autocast_cache()
            return now, self._loss()

    @contextmanager
    def _weights_back(self) -> Iterator[None]:
        """Whatever happens to trained weights meanwhile is undone, where they lie."""
        weights = [w for w in bare_model(self._runner).parameters() if w.requires_grad]
        # A forward pass may give one other memory: w.data = normalize(w.data).
        places = [w.data for w in weights]
        copies = [p.clone() for p in places]
        try:
            yield
        finally:
            for weight, place, copy in zip(weights, places, copies):
                weight.data = place
                if not overlaps_itself(place):
                    place.copy_(copy)
            torch.clear_autocast_cache()

    def _loss(self) -> float:
        runtime, model = self._runtime, bare_model(self._runner)
        runner_model: Any = model
        _, wrapper = next(iter_wrappers(self._runner.optim_wrapper))
        self._hook.catch_up()
        losses: list[float] = []
        with ExitStack() as stack:
            stack.callback(Contents(self._calls).restore)
            stack.enter_context(unnoticed(model))
            stack.enter_context(alone())
            stack.enter_context(runtime.quiet())
            for as_injected in runtime.replayed:
                stack.enter_context(as_injected())
            stack.enter_context(wrapper.optim_context(model))
            for args, kwargs in self._calls:
                outputs = model(*args, **kwargs)
                if isinstance(outputs, dict):
                    total, _ = runner_model.parse_losses(outputs)
                    if isinstance(total, Tensor):  # else a call for something else
                        losses.append(float(total.detach()))
        if not losses:
            raise ValueError("the forward pass gives no losses")
        return sum(losses)


def has_hooks_of_users(model: nn.Module) -> bool:
    """Whether forward hooks are neither ours nor of a library that models are made of.

    Weights are normalized by such hooks of torch, say.
    """
    hooks = [hook for m in model.modules() for hook in private.forward_hooks_of(m)]
    return any(not str(hook.__module__).startswith(_LIBRARIES) for hook in hooks)
