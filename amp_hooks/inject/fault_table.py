"""The kinds of faults that can be injected, and what they are given."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .damage import BAD_BOXES, Change


def parse_change(value: Any) -> Change:
    """'nan', 'inf', '-inf' or a number: set to it. 'x1000': multiplied by it.

    Raises:
        ValueError: It is something else.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return Change(float(value))
    if isinstance(value, str):
        if value in ("nan", "inf", "-inf"):
            return Change(float(value))
        if value.startswith("x"):
            factor = float(value[1:])
            if math.isfinite(factor):
                return Change(factor, multiply=True)
    raise ValueError


def parse_disk(value: Any) -> float | None:
    """Seconds that a checkpoint takes longer; ``None``: there is no room for it.

    Raises:
        ValueError: It is something else.
    """
    if value == "full":
        return None
    if isinstance(value, str) and value.startswith("slow:"):
        value = float(value[5:])
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError
    if not 0 < value < math.inf:
        raise ValueError
    return float(value)


def _parse_boxes(value: Any) -> str:
    if value not in BAD_BOXES:
        raise ValueError
    return str(value)


def _parse_message(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError
    return value


@dataclass(frozen=True)
class Kind:
    """What a kind of fault takes, and what is said when it did not happen.

    Attributes:
        missed: Why it may not have happened.
        named: What ``where`` names; '' if the kind has no ``where``.
        where: Its default; ``None``: it must be given.
        value: Default.
        parse: Reads the value, or raises ValueError.
        grammar: The values there are.
        counted: Whether ``count`` has a meaning.
    """

    missed: str
    named: str = ""
    where: tuple[str, ...] | None = ()
    value: Any = "nan"
    parse: Callable[[Any], Any] = parse_change
    grammar: str = "'nan', 'inf', '-inf', a number, or a factor such as 'x1000'"
    counted: bool = True


_NOT_CALLED = (
    "the modules were not called in training, or not as module(x), or returned no "
    "floating-point tensor"
)
KINDS = {
    "forward": Kind(_NOT_CALLED, "module", None),
    "gradient": Kind(
        "no gradient reached the parameters; are they frozen?", "parameter", None
    ),
    "parameter": Kind("the parameters are empty", "parameter", None),
    "buffer": Kind("the buffers are empty", "buffer", None),
    "optimizer": Kind(
        "the optimizer had no floating-point state of these parameters: there is none "
        "before its first step, for frozen parameters, or in SGD without momentum",
        "parameter",
        None,
    ),
    "ema": Kind("the parameters are empty", "parameter", ("*",)),
    "loss": Kind(
        "no loss has such a name; the names are those in the training log, without "
        "the total 'loss'",
        "loss",
        ("*loss*",),
        counted=False,
    ),
    "raise": Kind(
        "parse_losses, or the module named, was not called in training",
        "module",
        value="matrix contains invalid numeric entries",
        parse=_parse_message,
        grammar="the message of the exception",
        counted=False,
    ),
    "images": Kind("data_batch has no 'inputs' with tensors in it"),
    "boxes": Kind(
        "no sample of the batch had ground-truth boxes of the form x1, y1, x2, y2",
        value="zero",
        parse=_parse_boxes,
        grammar=", ".join(map(repr, BAD_BOXES)),
    ),
    "disk": Kind(
        "no checkpoint was written then; set `at` or `iters` so that one is",
        value="full",
        parse=parse_disk,
        grammar="'full', 'slow:2.5' (seconds), or a number of seconds above 0",
        counted=False,
    ),
}
