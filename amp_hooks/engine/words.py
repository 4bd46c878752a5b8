"""Sentences for a person: pieces of them, and those on lines of the ledger."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Mapping

Line = Mapping[str, Any]
_FEW = 3  # iterations that are all named
_WHERE = dict(
    losses="not finite:", layers="logits of", heads="heads:", buffers="buffers:"
)
_VERDICTS = {
    "SCALE_OVERFLOW": "gradient overflow",
    "FORWARD_NONFINITE": "the forward pass was not finite",
    "GRAD_NONFINITE": "gradients were not finite, and no loss scale cures that",
    "STATE_NONFINITE": "weights, buffers, optimizer or EMA were not finite",
    "RAISED": "the training step raised because of NaN",
    "DIVERGED": "the run had left its healthy range for good",
}


def in_plain_words(verdict: str) -> str:
    """A verdict, as it is told to a person."""
    return _VERDICTS.get(verdict, "")


def first_names(names: list[str], limit: int = 3) -> str:
    """The first of many names, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def one_a_line(paths: Sequence[Any]) -> str:
    """The first of many paths, to be copied, and how many more there are."""
    more = [f"and {len(paths) - _FEW} more"] if len(paths) > _FEW else []
    return "\n".join([*map(str, paths[:_FEW]), *more])


def without_prefix(text: str, prefix: str) -> str:
    """``str.removeprefix``, which Python 3.8 has not."""
    return text[len(prefix) :] if text.startswith(prefix) else text


def count(n: int, what: str, plural: str = "s") -> str:
    """``3 rollbacks``, ``1 rollback``."""
    return f"{n} {what}{plural * (n != 1)}"


def places(iterations: Iterable[int]) -> str:
    """``iterations 3 to 17`` in a row, ``iterations 19 and 21``, else the bounds."""
    known = sorted(set(iterations))
    first, last = known[0], known[-1]
    if first == last:
        return f"iteration {first}"
    if last - first == len(known) - 1:
        return f"iterations {first} to {last}"
    if len(known) <= _FEW:
        return f"iterations {all_of(known[:-1])} and {last}"
    return f"between {first} and {last}"


def names_in(value: Any) -> str:
    """The first of the items or keys of a field."""
    names = value if isinstance(value, (list, tuple, dict)) else [value]
    return first_names([str(name) for name in names])


def all_of(values: list[Any]) -> str:
    """All items of a field."""
    return ", ".join(map(str, values))


def number(value: Any) -> str:
    """A number for a sentence."""
    return f"{value:.6g}" if isinstance(value, (int, float)) else str(value)


def is_ordinary(line: Line) -> bool:
    """Whether a step was skipped for no more than a loss scale that finds its level."""
    skip = line.get("skip")
    kinds = {*skip.values()} if isinstance(skip, dict) else {skip}
    of_scale = line.get("verdict") == "SCALE_OVERFLOW"  # an old ledger calls NaN so
    return of_scale and kinds <= {"calibration", "ordinary"}


def reason(line: Line) -> str:
    """The verdict of a line in plain words, with where, as far as it is known."""
    text = in_plain_words(str(line.get("verdict")))
    text += " (normal for a dynamic loss scale)" * is_ordinary(line)
    for key, what in _WHERE.items():
        if where := line.get(key):
            text += f"; {what} {names_in(where)}"
    if why := line.get("why"):
        text += f": {why}"
    if where := line.get("nonfinite_state"):
        text += f": {names_in(where)}"
    # Of an older ledger: all were NaN, by the loss or by StepGuardHook.
    forward = line.get("verdict") in ("FORWARD_NONFINITE", "DIVERGED")
    if (where := line.get("nonfinite_grads")) and not forward:
        text += f"; gradients of {names_in(where)}"
    if where := line.get("error"):
        text += f": {where}"
    return text


def start(line: Line) -> str:
    """Of a ``start`` line."""
    resumed = f" from iteration {line['iter']}" if line["iter"] else ""
    return (
        f"Training begins{resumed}, {line['max_iters']} iterations in all, with "
        f"{names_in(line['optimizers'])}; hooks: {', '.join(line['hooks'])}."
    )


def overflow(line: Line) -> str:
    """Of an ``overflow`` line."""
    scale = f" The loss scale was {number(line['scale'])}." if "scale" in line else ""
    ranks = f" On ranks {names_in(line['ranks'])}." if line.get("ranks") else ""
    text = reason(line)
    return f"{text[:1].upper()}{text[1:]}.{scale}{ranks}"


def nan_term(line: Line) -> str:
    """Of a ``nan_term`` line."""
    return f"{names_in(line['losses'])} was not finite, but {line['why']}."


def watch(line: Line) -> str:
    """Of a ``watch`` line."""
    return f"Watched: {line['why']}."


def diverged(line: Line) -> str:
    """Of a ``diverged`` line."""
    return f"Diverged: {line['why']}."


def well(line: Line) -> str:
    """Of a ``well`` line."""
    if why := line.get("why"):
        return f"To go back would not help: {why}."
    return f"Healthy again by itself, after it was not since iteration {line['since']}."


def veto(line: Line) -> str:
    """Of a ``veto`` line."""
    scale = line.get("scale")
    return "The step was refused and the iteration undone" + (
        f"; loss scale now {number(scale)}." if scale is not None else "."
    )


def rollback(line: Line) -> str:
    """Of a ``rollback`` line."""
    scale = line.get("scale")
    return (
        f"Rollback {line['rollbacks']}: {reason(line)}. Weights, optimizer, loss scale "
        f"and EMA went back to iteration {line['target_iter']}; learning rate now "
        f"x{number(line['lr_factor'])}"
        + (f", loss scale {number(scale)}." if scale is not None else ".")
    )


def recover(line: Line) -> str:
    """Of a ``recover`` line."""
    factor = f"x{number(line['lr_factor'])}"
    if why := line.get("why"):
        return f"Going back was of no use: {why}. Learning rate now {factor}."
    return f"Learning rate raised to {factor}."


def clamp_on(line: Line) -> str:
    """Of a ``clamp_on`` line."""
    return (
        f"Head clamp on: {line['reason']}, largest |logit| {number(line['absmax'])}. "
        "Classifier layers and losses run in FP32 from the next iteration on, logits "
        f"within ±{number(line['limit'])}."
    )


def clamp_off(line: Line) -> str:
    """Of a ``clamp_off`` line."""
    if "gave_up" in line:
        return f"Head clamp given up, for its FP32 did not fit: {line['gave_up']}."
    return (
        f"Head clamp off after {line['clean_iterations']} calm iterations; it was on "
        f"since iteration {line['since']}."
    )


def early_warning(line: Line) -> str:
    """Of an ``early_warning`` line."""
    return (
        f"The logits of {line['layer']} are heading for an overflow: |logit| is "
        f"{number(line['absmax'])}, usually {number(line['usual'])}; FP16 overflows "
        f"in about {line['iterations_left']} iterations at this rate."
    )


def fallback(line: Line) -> str:
    """Of a ``fallback`` line."""
    if "reason" not in line:
        because = (
            f", as FP32 did not fit: {line['gave_up']}" if "gave_up" in line else ""
        )
        return f"Training is back in {line['to']}{because}."
    end = "for good" if line["until"] is None else f"until iteration {line['until']}"
    return f"Training goes on in {line['to']} {end}, because of {line['reason']}."


def boxes(line: Line) -> str:
    """Of a ``boxes`` line."""
    counts = ", ".join(f"{n} {flaw}" for flaw, n in dict(line["counts"]).items())
    named = line["images"][:5]
    images = "\n".join(map(str, named))
    if more := line["images_total"] - len(named):
        images += f"\nand {count(more, 'more image')}"
    rank = f" on rank {line['rank']}" if line["rank"] else ""
    done = {"drop": ", left out", "raise": ", which ended training"}
    done_so = done.get(line["action"], "")
    return f"Invalid boxes{rank}: {counts}{done_so}. Images:\n{images}"


def resume(line: Line) -> str:
    """Of a ``resume`` line."""
    return (
        f"Resumed, {count(line['rollbacks'], 'rollback')} so far, learning rate "
        f"x{number(line['lr_factor'])}, from\n{line['checkpoint']}"
    )


def abort(line: Line) -> str:
    """Of an ``abort`` line."""
    if "error" in line and "limit" not in line:
        if line.get("verdict") == "RAISED":
            return f"Training ended: {reason(line)}."
        last = line.get("checkpoint")
        resume = f" Resume in a new process, from\n{last}" if last else ""
        return f"Training ended with {line['error']}.{resume}"
    return (
        f"Training ended after {count(line['rollbacks'], 'rollback')}: {reason(line)}. "
        f"{line['limit']} allows no more. The last good checkpoint is\n"
        f"{line['checkpoint']}"
    )


def failure(line: Line) -> str:
    """Of a ``failure`` line."""
    return (
        f"{line['part']} failed in {line['where']}: {line['error']}. It is off since, "
        "and training goes on without it."
    )


def truncated(line: Line) -> str:
    """Of a ``truncated`` line."""
    return (
        f"The ledger is full after {line['max_events']} lines: from here on it has "
        "rollbacks and what else decides on the run, and no single overflow."
    )


def preflight(line: Line) -> str:
    """Of a ``preflight`` line."""
    found = line["findings"]
    if not found:
        return f"Pre-flight found nothing in {line['seconds']} s."
    fails = f"; fails: {all_of(line['fails'])}" if line["fails"] else ""
    done = {"told": "Training went on", "raised": "Training was not begun"}.get(
        line["done"], f"Now {line['done']}"
    )
    return f"Pre-flight found {all_of(found)}{fails}. {done}."


def forensics(line: Line) -> str:
    """Of a ``forensics`` line."""
    return f"{line['finding']} Details:\n{line['folder']}"


def bad_batch(line: Line) -> str:
    """Of a ``bad_batch`` line."""
    return f"Bad batch on rank {line['rank']}:\n{one_a_line(line['images'])}"


def suspect(line: Line) -> str:
    """Of a ``suspect`` line."""
    iters = all_of(line["iters"])
    return f"Suspect, for it was in bad iterations {iters}:\n{line['image']}"


def replaced(line: Line) -> str:
    """Of a ``replaced`` line."""
    by = line["by"]
    return f"Left out:\n{line['image']}" + (f"\nInstead:\n{by}" if by else "")


def fault(line: Line) -> str:
    """Of a ``fault`` line."""
    return f"Injected: {line['what']} {line['value']}, {names_in(line['where'])}."
