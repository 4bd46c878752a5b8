"""What RollbackHook tells the user."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..engine.words import count


def where_text(names: list[str]) -> str:
    """Which tensors are not finite, in brackets; nothing if none is named."""
    return f" ({', '.join(names[:3])}, {len(names)} in all)" if names else ""


def rolled_back(
    *,
    number: str,
    now: int,
    target: int,
    verdict: str,
    where: str,
    lr_factor: float,
    lr_kept: str,
    warmup_iters: int,
    scale: float | None,
) -> str:
    """The run went back.

    Args:
        number: Of this rollback, in words.
        now: Iteration in which it happened.
        target: Iteration of the snapshot.
        verdict: Why, in plain words.
        where: As from :func:`where_text`.
        lr_factor: Learning rate over the schedule's, after re-warm-up.
        lr_kept: Why the learning rate stays, or ''.
        warmup_iters: Iterations until a lowered one is reached.
        scale: Loss scale after it, if there is one.
    """
    learning_rate = f"now x{lr_factor:g}"
    if lr_kept:
        learning_rate = f"unchanged, for {lr_kept}"
    elif warmup_iters:
        learning_rate += f", reached in {warmup_iters} iterations"
    return (
        f"{number} at iteration {now}: {verdict}{where}. Weights, "
        f"optimizer, loss scale and EMA are back at iteration {target}; learning rate "
        f"{learning_rate}"
        + (f", loss scale {scale:g}" if scale is not None else "")
        + ". Training goes on with the next batch. If this repeats, lower the "
        "learning rate or lengthen the warm-up."
    )


def diverged(
    *,
    now: int,
    verdict: str,
    where: str,
    rollbacks: int,
    attempts: str,
    lr_factor: float,
    limit: str,
    checkpoint: str,
    at_once: bool,
) -> str:
    """The run is given up.

    Args:
        now: Iteration in which it happened.
        verdict: Why, in plain words.
        where: As from :func:`where_text`.
        rollbacks: So far.
        attempts: The rollbacks in words, or ''.
        lr_factor: Learning rate over the schedule's.
        limit: The argument that allows no more, with its value.
        checkpoint: The last good one.
        at_once: It was bad again at once after each rollback.
    """
    remedy = (
        "Begin with the weights of the last good checkpoint (load_from, without "
        "resume) at a lower learning rate or with a longer warm-up; or resume from it "
        "with gradient clipping or in FP32 (in BF16, where every operator has it), and "
        "with a higher limit."
    )
    if at_once:
        remedy = (
            "It was bad again at once after each, at a learning rate next to nothing, "
            "so another one is no cure: look at the data and at the code of the model. "
            "What ForensicsHook has found, where it is attached, is in stability.jsonl."
        )
    tried = f"{count(rollbacks, 'rollback')}, {attempts or 'none'}"
    return (
        f"training diverged at iteration {now}: {verdict}{where}. Tried: {tried}; "
        f"learning rate x{lr_factor:g}. {limit} "
        f"allows no more. {remedy} The last good checkpoint is\n{checkpoint}"
    )


def no_snapshot(now: int, verdict: str, where: str) -> str:
    """There is nothing to go back to."""
    return (
        f"{verdict}{where} at iteration {now}, and no snapshot to roll back to: the "
        "state was not finite before the first iteration, or there was no memory for a "
        "copy of it. Check load_from, the checkpoint resumed, and the log."
    )


def lr_raised(healthy: int | None, lr_factor: float, now: int) -> str:
    """The learning rate has recovered by a step."""
    return (
        f"{healthy} healthy iterations: learning rate now x{lr_factor:g} at iteration "
        f"{now}."
    )


def in_vain(target: int) -> str:
    """Why a rollback was of no use."""
    return (
        f"the weights of iteration {target} cost far more now than they did then, so "
        "it is the data, or a setting, and not the weights"
    )


def no_use(now: int, why: str, lr_factor: float) -> str:
    """What a rollback did is taken back."""
    return (
        f"iteration {now}: going back was of no use; {why}. This loss is the new "
        f"normal, the learning rate is x{lr_factor:g}, and that rollback does not "
        "count."
    )


def lr_held(factor: float, now: int) -> str:
    """Somebody writes the learning rate, and knew nothing of what it was changed by."""
    return (
        f"iteration {now}: the learning rate is written by something else than the "
        "schedulers of the run, a hook or the training loop, and would have taken back "
        f"what a rollback did to it. What it writes is multiplied by {factor:g} before "
        "each step from now on."
    )


LR_IS_A_TENSOR = (
    "the learning rate is a tensor. It is changed in place, but not read again, for "
    "that may wait for the device: if a hook or the training loop writes it as well, "
    "what it writes is used, whatever amp/lr_factor and the ledger say."
)


def ema_of_flexible(hook: str) -> str:
    """A resume is going to fail, and the user better knows it now."""
    return (
        f"a run of FlexibleRunner with {hook} cannot be resumed: MMEngine gives it the "
        "averages of the checkpoint before it has made its own, and ends with an "
        "AttributeError. Train with Runner, or leave the hook out."
    )


def other_ranks(then: int, now: int) -> str:
    """The run that is resumed had another number of processes."""
    return (
        f"the checkpoint is of a run on {then} ranks, and this one has {now}: an "
        f"iteration sees {now / then:g} times the samples at the same learning rate, "
        "an epoch has another number of iterations, and random number generators "
        f"begin anew. Resume on {then} ranks, or change batch_size and the learning "
        "rate to match."
    )


def incomplete(
    path: str,
    lacks: list[str],
    before: Iterable[Any],
    now: Iterable[Any],
    anew: Iterable[Any],
) -> str:
    """There was no checkpoint with all that a run needs to go on as it was.

    Args:
        path: The one that was taken.
        lacks: What it does not hold.
        before: Learning rate of each param group when it was saved.
        now: That of now.
        anew: Those that the schedules begin with, if they begin anew.
    """
    begins = f"; its schedule begins anew, for {_rates(anew)}" if anew else ""
    return (
        f"{path} holds no {' and no '.join(lacks)}. The learning rate was "
        f"{_rates(before)} when it was saved and is {_rates(now)} now{begins}. Let "
        "CheckpointHook save both (save_optimizer=True, save_param_scheduler=True), or "
        "name a complete checkpoint with load_from."
    )


def _rates(rates: Iterable[Any]) -> str:
    different = dict.fromkeys(f"{float(rate):.4g}" for rate in rates)
    return ", ".join(list(different)[:4]) or "not known"
