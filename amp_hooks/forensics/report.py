"""What is written about an incident that was looked into."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..data.boxes import NAMES, box_flaws, flaw_words
from ..engine.batches import boxes_of, data_samples, image_of, image_size, plain_id
from ..engine.words import first_names
from .forward_trace import Frame, Origin
from .magnitude import Magnitude
from .replay import Replay

_GRADS = 50  # parameters with non-finite gradients that are named


def kind_of(replay: Replay) -> str:
    """In one word: the origin's kind, or ``raised``, ``gradient``, ``unknown``."""
    if replay.origin is not None:
        return replay.origin.kind
    if replay.error:
        return "raised"
    return "gradient" if replay.nonfinite_grads else "unknown"


def brief(replay: Replay) -> str:
    """In a few words."""
    origin = replay.origin
    if origin is None:
        if replay.error:
            return f"does not run: {replay.error}"
        if replay.nonfinite_grads:
            return "gradients are not finite"
        if replay.skipped:
            return f"losses are finite, backward does not run: {replay.skipped}"
        return "finite"
    if origin.kind == "input":
        return "the input is not finite"
    if origin.kind == "loss":
        return f"not finite: {first_names(origin.tensors)}"
    before = f", before {origin.consumer}" if origin.consumer else ""
    return f"{origin.kind} in {_path(origin.module)}{before}"


def conclusion(replay: Replay, batch: list[dict[str, Any]]) -> str:
    """In a sentence or two: where it arises, and what is known of it.

    Args:
        replay: The second run.
        batch: Of :func:`images`.
    """
    origin = replay.origin
    if origin is not None:
        text = _of_origin(origin)
    elif replay.error:
        text = f"The forward pass raised {replay.error}; all before it was finite"
    elif replay.nonfinite_grads:
        text = (
            "Losses and the output of every module are finite, but the gradients of "
            f"{len(replay.nonfinite_grads)} of {replay.grads} parameters, or their "
            f"norms, are not: {first_names(replay.nonfinite_grads)}"
        )
    elif replay.skipped:
        text = (
            "Losses and the output of every module are finite; the backward pass could "
            f"not be run once more ({replay.skipped})"
        )
    else:
        text = "Run once more, everything was finite"
    flawed = [
        f"{image['path']} box {i}: {flaw}"
        for image in batch
        for i, flaw in image["flaws"].items()
    ]
    if flawed:
        text += f". Invalid boxes in the batch: {first_names(flawed)}"
    return f"{text}."


def _of_origin(origin: Origin) -> str:
    what = first_names(origin.tensors)
    if origin.kind == "input":
        return f"NaN/Inf in the model's input: {what}"
    operation = f"{origin.operation}, " if origin.operation else ""
    if origin.kind == "loss":
        return (
            f"First NaN/Inf: {operation}in {what}; the output of every module is finite"
        )
    if origin.kind == "code":
        return (
            f"First NaN/Inf: {operation}called from {_path(origin.module)}, given to "
            f"{origin.consumer} ({what})"
        )
    frame = origin.frame
    if frame is None:
        return f"First NaN/Inf: {operation}in {what}"
    whose = f"{_path(origin.module)} ({frame.kind}"
    whose += f", call {frame.call})" if frame.call > 1 else ")"
    if origin.kind == "weights":
        return f"NaN/Inf in the weights or buffers of {whose}: {what}"
    bad = [row for row in frame.rows if row.name in origin.tensors]
    inputs = [row.absmax for row in frame.rows if row.name.startswith("input")]
    shown = "; ".join(_not_finite(row) for row in bad)
    verb = "overflows" if origin.kind == "overflow" else "has NaN"
    return (
        f"First NaN/Inf: {operation}the output of {whose} {verb}: {shown}; its inputs "
        "are finite"
    ) + (f", largest magnitude {max(inputs):.4g}" if inputs else "")


def _path(module: str) -> str:
    return module or "the detector itself"


def _not_finite(row: Magnitude) -> str:
    total = math.prod(row.shape)
    counts = {"NaN": row.nan, "+inf": row.inf, "-inf": row.neg_inf}
    parts = ", ".join(f"{n} {name}" for name, n in counts.items() if n)
    return f"{row.name} {parts} of {total} values, else up to {row.absmax:.4g}"


def report(replay: Replay, about: dict[str, Any]) -> dict[str, Any]:
    """Everything, as plain data.

    Args:
        replay: The second run.
        about: What is known beside it: iteration, verdict, rank, precision.
    """
    batch = list(images((replay.call.args, replay.call.kwargs)))
    # Behind a forward pass that is not finite they are so for that reason alone.
    grads = [] if replay.origin or replay.error else replay.nonfinite_grads
    origin, operation = replay.origin, None
    if origin is not None and origin.operation is not None:
        operation = vars(origin.operation)
    return dict(
        about,
        finding=conclusion(replay, batch),
        kind=kind_of(replay),
        module=None if origin is None else origin.module,
        call=origin.frame.call if origin and origin.frame else None,
        tensors=[] if origin is None else origin.tensors,
        consumer=None if origin is None else origin.consumer or None,
        operation=operation,
        error=replay.error or None,
        losses=replay.losses,
        nonfinite_grads=grads[:_GRADS],
        nonfinite_grads_total=len(grads),
        backward_skipped=replay.skipped or None,
        images=batch,
        frames=[_frame(frame) for frame in replay.frames],
    )


def _of_gradients(data: dict[str, Any], total: int) -> str:
    if data["kind"] in ("gradient", "unknown"):
        return f"Parameters with non-finite gradients: {total}"
    return "Gradients tell nothing here: the forward pass was not finite, or raised"


def _frame(frame: Frame) -> dict[str, Any]:
    rows = [row._asdict() for row in frame.rows]
    return dict(module=frame.module, kind=frame.kind, call=frame.call, rows=rows)


def images(tree: Any) -> Iterator[dict[str, Any]]:
    """Name, id and boxes of each data sample, with what is wrong with a box."""
    for sample in data_samples(tree):
        named = image_of(sample) or (None, None)
        size, (_, tensor) = image_size(sample), boxes_of(sample)
        rows = [] if tensor is None else tensor.flatten(1).tolist()
        flaws = {}
        if rows and len(rows[0]) == 4:  # rotated ones have five
            sizes = (
                None if size is None else np.tile(np.array(size, float), [len(rows), 1])
            )
            codes = box_flaws(np.array(rows), sizes).tolist()
            flaws = {
                str(i): flaw_words(NAMES[c], 1.0) for i, c in enumerate(codes) if c
            }
        yield dict(
            path=named[0], id=plain_id(named[1]), size=size, boxes=rows, flaws=flaws
        )


def as_text(data: dict[str, Any]) -> str:
    """The report for a person; ``data`` is of :func:`report`."""
    lines = [
        f"Fault at iteration {data['iter']} ({data['verdict']}), rank {data['rank']}",
        "",
        data["finding"],
    ]
    if data["operation"]:
        lines.append(f"    {data['operation']['code']}")
    lines += ["", *data["notes"], ""] if data["notes"] else [""]
    lines += [f"Precision: {'; '.join(data['optimizers'])}", "", "Images"]
    for image in data["images"]:
        lines.append(f"  {image['path']} (id {image['id']}, size {image['size']})")
        for i, box in enumerate(image["boxes"]):
            flaw = image["flaws"].get(str(i), "")
            shown = ", ".join(f"{v:.2f}" for v in box)
            lines.append(f"    box {i}: {shown}" + (f"  <- {flaw}" if flaw else ""))
    lines += ["", "Losses"]
    lines += [f"  {name}: {loss:.6g}" for name, loss in data["losses"].items()] or [
        "  none: the forward pass did not come so far"
    ]
    total = data["nonfinite_grads_total"]
    lines += ["", _of_gradients(data, total)]
    lines += [f"  {name}" for name in data["nonfinite_grads"]]
    if total > len(data["nonfinite_grads"]):
        lines.append(f"  and {total - len(data['nonfinite_grads'])} more")
    if data["backward_skipped"]:
        lines.append(f"  the backward pass ended early: {data['backward_skipped']}")
    lines += [
        "",
        f"The last {len(data['frames'])} module calls, in the order of their ends",
        f"  {'abs min':>9} {'abs max':>9} {'NaN':>8} {'+inf':>8} {'-inf':>8}",
    ]
    for frame in data["frames"]:
        call = f", call {frame['call']}" if frame["call"] > 1 else ""
        lines.append(f"  {frame['module'] or 'the detector'} ({frame['kind']}{call})")
        lines += [_row(row) for row in frame["rows"]]
    return "\n".join(lines) + "\n"


def _row(row: dict[str, Any]) -> str:
    counts = " ".join(f"{row[key] or '-':>8}" for key in ("nan", "inf", "neg_inf"))
    shape = "x".join(map(str, row["shape"])) or "scalar"
    return (
        f"  {row['absmin']:9.2e} {row['absmax']:9.2e} {counts}  {row['name']} "
        f"({shape}, {row['dtype']})"
    )
