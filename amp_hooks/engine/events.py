"""The ledger's events: what each means, its fields, and the words for a person."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from . import words
from .words import Line


@dataclass(frozen=True)
class Event:
    """A kind of line in ``stability.jsonl``.

    Attributes:
        meaning: One line for the table of docs/en/ledger.md.
        words: The sentence that tells a person about a line.
        fields: Meaning of each field that a line has beside ``iter``, ``event`` and
            ``verdict``. Those whose meaning begins with 'if' may be missing.
    """

    meaning: str
    words: Callable[[Line], str]
    fields: dict[str, str] = field(default_factory=dict)


_SINCE = "iteration in which it began"

EVENTS = {
    "start": Event(
        "training begins, anew or after a resume",
        words.start,
        {
            "time": "when, in UTC (ISO 8601)",
            "max_iters": "where training is to end",
            "hooks": "the hooks of this package, and the arguments given to each",
            "suite": "those given to StabilityHook, or null",
            "optimizers": "wrapper, dtype, loss scale, clipping of each optimizer",
            "batch_size": "samples of an iteration on each rank, or null",
            "world_size": "processes",
            "device": "what it runs on",
            "versions": "of torch, mmengine, amp_hooks",
        },
    ),
    "boxes": Event(
        "BoxSanityHook found invalid boxes",
        words.boxes,
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
        words.preflight,
        {
            "findings": "names of what was found",
            "fails": "those of them that fail",
            "loss_differences": "relative, of each loss term, as configured to FP32",
            "headroom_bits": "doublings from each classifier's logits to 65504",
            "seconds": "that it took",
            "done": "nothing, told, raised, bfloat16, float32 or validation in float32",
            "remedies": "numbers that were advised: lr, warmup, clip",
        },
    ),
    "overflow": Event(
        "an iteration had NaN or inf somewhere",
        words.overflow,
        {
            "losses": "if losses were not finite: these, with their value",
            "layers": "if logits were not: the classifier layers",
            "heads": "if what heads hand to their losses was not: these",
            "buffers": "if buffers became so: up to five of these",
            "nonfinite_grads": "if gradients alone were not: the first five parameters",
            "nonfinite_grads_total": "if gradients alone were not: how many parameters",
            "scale": "if there is a GradScaler: the loss scale of the step",
            "skip": "if GradScaler skipped the step: calibration, ordinary, collapse, "
            "or forward where loss or logits were not finite",
            "error": "if the training step raised: type and message",
            "ranks": "if there are several processes: where loss or logits failed",
        },
    ),
    "nan_term": Event(
        "a loss term was not finite and did no harm, for the first time",
        words.nan_term,
        {"losses": "such terms, with their value", "why": "it did no harm"},
    ),
    "watch": Event(
        "the loss has left its healthy range: nothing is kept until it is back",
        words.watch,
        {"why": "one sentence", "loss_ratio": "loss over its level", "since": _SINCE},
    ),
    "diverged": Event(
        "the run is ill: every number is finite, and it learns nothing",
        words.diverged,
        {"why": "one sentence", "loss_ratio": "loss over its level", "since": _SINCE},
    ),
    "well": Event(
        "the run is healthy again by itself",
        words.well,
        {"since": _SINCE, "why": "if it was not the weights: how that is known"},
    ),
    "veto": Event(
        "StepGuardHook undid the iteration",
        words.veto,
        {"scale": "loss scale after it, or null"},
    ),
    "early_warning": Event(
        "logits grow towards the FP16 limit",
        words.early_warning,
        {
            "layer": "the classifier layer",
            "absmax": "its largest |logit|",
            "usual": "the same, lately",
            "iterations_left": "until FP16 overflows at this rate",
        },
    ),
    "clamp_on": Event(
        "HeadClampHook begins to clamp",
        words.clamp_on,
        {
            "reason": "non-finite forward, large logits or early warning",
            "absmax": "largest |logit|",
            "limit": "largest magnitude let through",
        },
    ),
    "clamp_off": Event(
        "HeadClampHook ends",
        words.clamp_off,
        {
            "since": "iteration of clamp_on",
            "clean_iterations": "calm iterations in a row",
            "limit": "as in clamp_on",
            "gave_up": "if losses in FP32 did not fit into memory: the error",
        },
    ),
    "snapshot": Event(
        "a rollback checkpoint was written and verified",
        lambda line: f"Verified checkpoint:\n{line['file']}",
        {"file": "its path"},
    ),
    "rollback": Event(
        "the learned state went back",
        words.rollback,
        {
            "target_iter": "iteration of the snapshot",
            "rollbacks": "rollbacks so far",
            "lr_factor": "learning rate over the schedule's, after re-warm-up",
            "scale": "loss scale after it, or null",
            "nonfinite_state": "up to five tensors of the state that were not finite",
            "why": "if the verdict is DIVERGED: one sentence",
            "target_level": "if it is known: level of the loss at the snapshot",
        },
    ),
    "recover": Event(
        "RollbackHook raised the learning rate again",
        words.recover,
        {
            "lr_factor": "learning rate over the schedule's",
            "why": "if going back was of no use: how that is known",
        },
    ),
    "fallback": Event(
        "the precision changed",
        words.fallback,
        {
            "to": "the new one",
            "until": "iteration of the way back, or null",
            "reason": "if the configured precision was left: why",
            "gave_up": "if FP32 did not fit into memory: the error",
        },
    ),
    "forensics": Event(
        "an incident was looked into",
        words.forensics,
        {
            "folder": "where report, batch and weights are",
            "kind": "as in report.json: overflow, nan, weights, input, ...",
            "module": "path of the module with the first NaN or inf, or null",
            "finding": "one sentence",
            "rank": "the process",
            "bytes": "size of batch and weights there",
        },
    ),
    "bad_batch": Event(
        "images of a bad iteration",
        words.bad_batch,
        {"rank": "the process", "images": "their paths", "ids": "their ids"},
    ),
    "suspect": Event(
        "an image came back in bad iterations",
        words.suspect,
        {"image": "its path", "id": "its id", "iters": "the iterations"},
    ),
    "replaced": Event(
        "a suspect was left out",
        words.replaced,
        {
            "rank": "the process",
            "image": "its path",
            "by": "what took its place, or null",
            "total": "samples replaced so far",
        },
    ),
    "fault": Event(
        "FaultInjectionHook damaged the run on purpose",
        words.fault,
        {
            "what": "kind of fault",
            "where": "what was hit, up to five names",
            "value": "as configured",
            "rank": "the process, or null for all",
        },
    ),
    "resume": Event(
        "RollbackHook went on from a checkpoint",
        words.resume,
        {
            "rollbacks": "rollbacks so far",
            "lr_factor": "learning rate over the schedule's",
            "checkpoint": "its path",
        },
    ),
    "failure": Event(
        "a part of amp_hooks failed and is off since; the run goes on without it",
        words.failure,
        {
            "part": "class of the hook, or amp_hooks for all of them",
            "where": "event or method, file and line",
            "error": "type and message",
        },
    ),
    "abort": Event(
        "training ended with an exception",
        words.abort,
        {
            "rollbacks": "if RollbackHook ended it: rollbacks so far",
            "lr_factor": "if RollbackHook ended it: as in rollback",
            "limit": "if RollbackHook ended it: the argument that allows no more",
            "checkpoint": "if RollbackHook or a failed kernel ended it: the last one",
            "error": "if an exception was the cause: type and message",
        },
    ),
    "end": Event(
        "training finished",
        lambda line: "Training finished.",
        {"time": "when, in UTC (ISO 8601)"},
    ),
    "truncated": Event(
        "the file is full: from here on only what decides on the run is written",
        words.truncated,
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
        if event not in EVENTS:
            return f"{event}: {rest}" if rest else event
        meaning = EVENTS[event].meaning
        what = f"{meaning[:1].upper()}{meaning[1:]}"
        return f"{what}: {rest}." if rest else f"{what}."
