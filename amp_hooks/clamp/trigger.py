"""From which magnitude of logits on a clamp is needed, and its default limit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Dict, Union

from ..engine.checks import check_number
from ..engine.headroom import FP16_MAX, USELESS_LOGIT, headroom_bits

Trigger = Union[float, Dict[str, float], None]

# HeadClampHook's defaults.
LIMIT = USELESS_LOGIT
# In FP16, 6 doublings below its largest number. What overflows nothing may be healthy:
# a linear classifier on raw pixels has logits of thousands.
TRIGGER = 1000.0
# Nor does a layer come nearer to overflow that begins out there and stays there: a
# broken head, whose first logits are absurd, finds back without a clamp or not at all.
GROWN = 8.0
# But 2 doublings below FP16's largest number it is high time.
HIGH_TIME = 2.0**14


def check_trigger(owner: str, trigger: Any, limit: float | None) -> Trigger:
    """Return ``trigger`` if it is a number, ``dict(headroom_bits=...)`` or None.

    Args:
        owner: Whose argument it is.
        trigger: What the user gave.
        limit: The trigger must not lie below it, or what switches the clamp on would
            switch it off as well; None if that does not matter.
    """
    if trigger is None:
        checked: Trigger = None
        logits, shown = TRIGGER, f"None, which is {TRIGGER} in FP16,"
    elif not isinstance(trigger, dict):
        checked = check_number(owner, "trigger", trigger, above=0)
        logits, shown = float(trigger), f"{trigger}"
    elif set(trigger) != {"headroom_bits"}:
        raise ValueError(
            f"{owner}: trigger must be a number of logits or dict(headroom_bits=6.0), "
            f"got {trigger!r}."
        )
    else:
        name, bits = "trigger['headroom_bits']", trigger["headroom_bits"]
        checked = dict(headroom_bits=check_number(owner, name, bits, above=0))
        logits = FP16_MAX / 2.0 ** min(bits, 1000.0)
        shown = f"{trigger} is a |logit| of {logits:.4g} in FP16, which"
    if limit is not None and logits < limit:
        raise ValueError(
            f"{owner}: trigger={shown} must not be below limit={limit}: inside the "
            "limit there is nothing to clamp. "
            + ("Ask for fewer bits" if isinstance(trigger, dict) else "Raise trigger")
            + " or lower limit."
        )
    return checked


def in_fp16(largest: float) -> bool:
    """Whether this is FP16's largest number: no other is so soon overflowed."""
    return largest <= FP16_MAX


def by_default(first: float) -> float:
    """The trigger of a layer whose largest |logit| was ``first`` in the beginning."""
    return min(max(TRIGGER, GROWN * first), HIGH_TIME)


def beyond_trigger(
    trigger: Trigger,
    absmax: Mapping[str, float],
    largest: Mapping[str, float],
    first: Mapping[str, float],
) -> bool:
    """Whether the logits of any layer are as large as that.

    Args:
        trigger: What :func:`check_trigger` returned.
        absmax: Largest |logit| by layer.
        largest: Largest finite number of the layer's precision, by layer.
        first: What ``absmax`` was when the layer was first seen.
    """
    if trigger is None:
        return any(
            v > by_default(first.get(name, 0.0)) and in_fp16(largest[name])
            for name, v in absmax.items()
        )
    if not isinstance(trigger, dict):
        return any(value > trigger for value in absmax.values())
    bits = trigger["headroom_bits"]
    return any(headroom_bits(v, largest[name]) < bits for name, v in absmax.items())
