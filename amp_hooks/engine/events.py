"""The ledger's events: what each means, its fields, and the words for a person."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .words import first_names

Line = Mapping[str, Any]


@dataclass(frozen=True)
class Event:
    """A kind of line in ``stability.jsonl``.

    Attributes:
        meaning: One line for the README's table.
        words: The sentence that tells a person about a line.
        fields: Meaning of each field that a line has beside ``iter``, ``event`` and
            ``verdict``. Those whose meaning begins with 'if' may be missing.
    """

    meaning: str
    words: Callable[[Line], str]
    fields: dict[str, str] = field(default_factory=dict)


def _names(value: Any) -> str:
    names = value if isinstance(value, (list, tuple, dict)) else [value]
    return first_names([str(name) for name in names])


def _all(values: list[Any]) -> str:
    return ", ".join(map(str, values))


def _number(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, (int, float)) else str(value)


_VERDICTS = {
    "SCALE_OVERFLOW": "scaled gradients overflowed, as they do now and then",
    "FORWARD_NONFINITE": "the forward pass was not finite",
    "GRAD_NONFINITE": "gradients were not finite, and no loss scale cures that",
    "STATE_NONFINITE": "weights, buffers, optimizer or EMA were not finite",
    "RAISED": "the training step raised because of NaN",
}


def reason(line: Line) -> str:
    """The verdict of a line in plain words, with where, as far as it is known."""
    text = _VERDICTS.get(str(line.get("verdict")), "")
    if where := line.get("losses"):
        text += f"; not finite: {_names(where)}"
    if where := line.get("layers"):
        text += f"; logits of {_names(where)}"
    if where := line.get("nonfinite_state"):
        text += f": {_names(where)}"
    if where := line.get("nonfinite_grads"):
        text += f"; gradients of {_names(where)}"
    if where := line.get("error"):
        text += f": {where}"
    return text


def _start(line: Line) -> str:
    resumed = f" from iteration {line['iter']}" if line["iter"] else ""
    return (
        f"Training begins{resumed}, until iteration {line['max_iters']}, with "
        f"{_names(line['optimizers'])}; hooks: {', '.join(line['hooks'])}."
    )


def _overflow(line: Line) -> str:
    scale = f" The loss scale was {_number(line['scale'])}." if "scale" in line else ""
    ranks = f" On ranks {_names(line['ranks'])}." if line.get("ranks") else ""
    text = reason(line)
    return f"{text[:1].upper()}{text[1:]}.{scale}{ranks}"


def _veto(line: Line) -> str:
    scale = line.get("scale")
    return "The step was refused and the iteration undone" + (
        f"; loss scale now {_number(scale)}." if scale is not None else "."
    )


def _rollback(line: Line) -> str:
    scale = line.get("scale")
    return (
        f"Rollback {line['rollbacks']}: {reason(line)}. Weights, optimizer, loss scale "
        f"and EMA went back to iteration {line['target_iter']}; learning rate now "
        f"x{_number(line['lr_factor'])}"
        + (f", loss scale {_number(scale)}." if scale is not None else ".")
    )


def _clamp_on(line: Line) -> str:
    return (
        f"Head clamp on: {line['reason']}, largest |logit| {_number(line['absmax'])}. "
        "Classifier layers and losses run in FP32 from the next iteration on, logits "
        f"within ±{_number(line['limit'])}."
    )


def _clamp_off(line: Line) -> str:
    return (
        f"Head clamp off after {line['clean_iterations']} calm iterations; it was on "
        f"since iteration {line['since']}."
    )


def _early_warning(line: Line) -> str:
    return (
        f"The logits of {line['layer']} are heading for an overflow: |logit| is "
        f"{_number(line['absmax'])}, usually {_number(line['usual'])}; FP16 overflows "
        f"in about {line['iterations_left']} iterations at this rate."
    )


def _fallback(line: Line) -> str:
    if "reason" not in line:
        return f"Training is back in {line['to']}."
    end = "for good" if line["until"] is None else f"until iteration {line['until']}"
    return f"Training goes on in {line['to']} {end}, because of {line['reason']}."


def _boxes(line: Line) -> str:
    counts = ", ".join(f"{n} {flaw}" for flaw, n in dict(line["counts"]).items())
    named = line["images"][:5]
    images = _all(named)
    if more := line["images_total"] - len(named):
        images += f" and {more} more images"
    rank = f" on rank {line['rank']}" if line["rank"] else ""
    done = {"drop": ", left out", "raise": ", which ended training"}
    return f"Bad boxes{rank}: {counts} in {images}{done.get(line['action'], '')}."


def _resume(line: Line) -> str:
    return (
        f"Resumed from {line['checkpoint']}: {line['rollbacks']} rollbacks so far, "
        f"learning rate x{_number(line['lr_factor'])}."
    )


def _abort(line: Line) -> str:
    if "error" in line:
        return f"Training ended: {reason(line)}."
    return (
        f"Training ended after {line['rollbacks']} rollbacks: {reason(line)}. "
        f"{line['limit']} allows no more. The last good checkpoint is "
        f"{line['checkpoint']}."
    )


def _preflight(line: Line) -> str:
    found = line["findings"]
    if not found:
        return f"Pre-flight found nothing in {line['seconds']} s."
    fails = f"; fails: {_all(line['fails'])}" if line["fails"] else ""
    done = {"told": "Training went on", "raised": "Training was not begun"}.get(
        line["done"], f"Now {line['done']}"
    )
    return f"Pre-flight found {_all(found)}{fails}. {done}."


def _forensics(line: Line) -> str:
    return f"{line['finding']} The whole story is in {line['folder']}."


EVENTS = {
    "start": Event(
        "training begins, anew or after a resume",
        _start,
        {
            "time": "when, in UTC (ISO 8601)",
            "max_iters": "where training is to end",
            "hooks": "the hooks of this package, and the arguments given to each",
            "optimizers": "wrapper, dtype, loss scale, clipping of each optimizer",
            "batch_size": "samples of an iteration on each rank, or null",
            "world_size": "processes",
            "device": "what it runs on",
            "versions": "of torch, mmengine, amp_hooks",
        },
    ),
    "boxes": Event(
        "BoxSanityHook found boxes that are not sound",
        _boxes,
        {
            "action": "as configured: warn, drop or raise",
            "counts": "boxes by flaw",
            "images": "paths of the images with such boxes",
            "images_total": "how many images",
            "rank": "the process",
        },
    ),
    "preflight": Event(
        "AmpPreflightHook looked at the first batch",
        _preflight,
        {
            "findings": "names of what was found",
            "fails": "those of them that fail",
            "loss_differences": "relative, of each loss term, as configured to FP32",
            "headroom_bits": "doublings from each classifier's logits to 65504",
            "seconds": "that it took",
            "done": "nothing, told, raised, bfloat16, float32 or validation in float32",
        },
    ),
    "overflow": Event(
        "an iteration had NaN or inf somewhere",
        _overflow,
        {
            "losses": "if losses were not finite: these, with their value",
            "layers": "if logits were not: the classifier layers",
            "nonfinite_grads": "if gradients were not: the first five parameters",
            "nonfinite_grads_total": "if gradients were not: how many parameters",
            "scale": "if there is a GradScaler: the loss scale of the step",
            "skip": "if GradScaler skipped the step: calibration, ordinary or collapse",
            "error": "if the training step raised: type and message",
            "ranks": "if there are several processes: where loss or logits failed",
        },
    ),
    "veto": Event(
        "StepGuardHook undid the iteration",
        _veto,
        {"scale": "loss scale after it, or null"},
    ),
    "early_warning": Event(
        "logits grow towards the FP16 limit",
        _early_warning,
        {
            "layer": "the classifier layer",
            "absmax": "its largest |logit|",
            "usual": "the same, lately",
            "iterations_left": "until FP16 overflows at this rate",
        },
    ),
    "clamp_on": Event(
        "HeadClampHook begins to clamp",
        _clamp_on,
        {
            "reason": "non-finite forward, large logits or early warning",
            "absmax": "largest |logit|",
            "limit": "largest magnitude let through",
        },
    ),
    "clamp_off": Event(
        "HeadClampHook ends",
        _clamp_off,
        {
            "since": "iteration of clamp_on",
            "clean_iterations": "calm iterations in a row",
            "limit": "as in clamp_on",
        },
    ),
    "snapshot": Event(
        "a rollback checkpoint was written and verified",
        lambda line: f"Verified checkpoint {line['file']}.",
        {"file": "its path"},
    ),
    "rollback": Event(
        "the learned state went back",
        _rollback,
        {
            "target_iter": "iteration of the snapshot",
            "rollbacks": "rollbacks so far",
            "lr_factor": "learning rate over the schedule's, after re-warm-up",
            "scale": "loss scale after it, or null",
            "nonfinite_state": "up to five tensors of the state that were not finite",
        },
    ),
    "recover": Event(
        "RollbackHook raised the learning rate again",
        lambda line: f"Learning rate raised to x{_number(line['lr_factor'])}.",
        {"lr_factor": "learning rate over the schedule's"},
    ),
    "fallback": Event(
        "the precision changed",
        _fallback,
        {
            "to": "the new one",
            "until": "iteration of the way back, or null",
            "reason": "if the configured precision was left: why",
        },
    ),
    "forensics": Event(
        "a fault was looked into",
        _forensics,
        {
            "folder": "where report, batch and weights are",
            "kind": "as in report.json: overflow, nan, weights, input, ...",
            "module": "path of the module where it arose, or null",
            "finding": "one sentence",
            "rank": "the process",
            "bytes": "size of batch and weights there",
        },
    ),
    "bad_batch": Event(
        "images of a bad iteration",
        lambda line: f"Bad batch on rank {line['rank']}: {_names(line['images'])}.",
        {"rank": "the process", "images": "their paths", "ids": "their ids"},
    ),
    "suspect": Event(
        "an image came back in bad iterations",
        lambda line: f"{line['image']} was in bad iterations {_all(line['iters'])}.",
        {"image": "its path", "id": "its id", "iters": "the iterations"},
    ),
    "replaced": Event(
        "a suspect was left out",
        lambda line: (
            f"{line['image']} was left out; {line['by'] or 'another'} instead."
        ),
        {
            "rank": "the process",
            "image": "its path",
            "by": "what took its place, or null",
            "total": "samples replaced so far",
        },
    ),
    "fault": Event(
        "FaultInjectionHook damaged the run on purpose",
        lambda line: (
            f"Injected: {line['what']} {line['value']}, {_names(line['where'])}."
        ),
        {
            "what": "kind of fault",
            "where": "what was hit, up to five names",
            "value": "as configured",
            "rank": "the process, or null for all",
        },
    ),
    "resume": Event(
        "RollbackHook went on from a checkpoint",
        _resume,
        {
            "rollbacks": "rollbacks so far",
            "lr_factor": "learning rate over the schedule's",
            "checkpoint": "its path",
        },
    ),
    "abort": Event(
        "training ended with TrainingDivergedError",
        _abort,
        {
            "rollbacks": "if RollbackHook ended it: rollbacks so far",
            "lr_factor": "if RollbackHook ended it: as in rollback",
            "limit": "if RollbackHook ended it: the argument that allows no more",
            "checkpoint": "if RollbackHook ended it: the last good one",
            "error": "if StepGuardHook ended it: the exception",
        },
    ),
    "end": Event(
        "the training loop ended in its own time",
        lambda line: "Training ended.",
        {"time": "when, in UTC (ISO 8601)"},
    ),
    "truncated": Event(
        "the file is full; nothing is written after this",
        lambda line: f"The ledger is full after {line['max_events']} events.",
        {"max_events": "lines written"},
    ),
}


def in_words(line: Line) -> str:
    """Tell a person about a line of the ledger.

    Args:
        line: As written. One of another version, or cut short, gives a poorer
            sentence and no error.
    """
    event = str(line.get("event"))
    try:
        return EVENTS[event].words(line)
    except (KeyError, TypeError, ValueError):
        rest = {k: v for k, v in line.items() if k not in ("iter", "event", "verdict")}
        return f"{event}: {rest}" if rest else event
