"""The flight recorder: an iteration's device scalars, brought home in one copy."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .verdict import Verdict

# How several values noted under one name in one iteration become one.
_REDUCE: dict[str, Callable[[tuple[float, float]], float]] = {
    "max": max,
    "min": min,
    "sum": sum,
}


@dataclass
class IterationRecord:
    """What was measured in one training iteration, as host numbers.

    Attributes:
        iter: 0-based iteration, ``runner.iter`` while it ran.
        values: ``values[quantity][name]``. Quantities: ``loss`` (what ``train_step``
            returns under a name with "loss" in it); ``backward_loss`` (what was
            propagated, before division by accumulation), ``scale`` (loss scale used by
            the step), ``scale_next`` (after it), ``found_inf`` (1.0 if the step saw
            non-finite gradients), all by optimizer name; ``gradnorm``
            (unscaled, by group, '' is the total); ``growth_tracker`` (clean steps
            since the dynamic scale last changed), by optimizer; ``logit_absmax``
            (over finite values), ``logit_nan`` and ``logit_inf`` (how many values)
            and ``logit_limit`` (largest number of the layer's precision), by layer;
            ``clamped`` (fraction of logits beyond the limit), by layer; and what
            hooks add. A value may be NaN or infinite.
        vectors: ``vectors[quantity][name]``: a list for each vector that was noted.
            ``grad_norms``: unscaled, of every parameter, for each step of an optimizer.
        verdict: The judgement on it.
        ranks: Ranks whose loss or logits were not finite, as far as this one knows.
        steps_unseen: Losses are propagated, and nothing shows how optimizers step: the
            losses alone can judge.
        step_due: No accumulation waits for its step any more.
    """

    iter: int
    values: dict[str, dict[str, float]] = field(default_factory=dict)
    vectors: dict[str, dict[str, list[list[float]]]] = field(default_factory=dict)
    verdict: Verdict = Verdict.HEALTHY
    ranks: list[int] = field(default_factory=list)
    steps_unseen: bool = False
    step_due: bool = True

    def get(self, quantity: str, name: str = "") -> float | None:
        """One value, or ``None`` if it was not measured."""
        return self.values.get(quantity, {}).get(name)

    def all(self, quantity: str) -> list[float]:
        """Every value of a quantity, over its names."""
        return list(self.values.get(quantity, {}).values())

    @property
    def stepped(self) -> bool:
        """Whether optimizers stepped in it, and none refused to.

        False between the steps of gradient accumulation, of which a verdict HEALTHY
        therefore proves nothing.
        """
        found_inf = self.all("found_inf")
        return bool(found_inf) and not any(found_inf)

    @property
    def proves_something(self) -> bool:
        """Whether optimizers stepped in it, or it is of a loop that steps by itself."""
        return self.stepped or self.by_loss_alone

    @property
    def by_loss_alone(self) -> bool:
        """Whether the losses are the only judge: of a loop that steps by itself."""
        return "backward_loss" not in self.values or self.steps_unseen

    def any_nonfinite(self, quantity: str) -> bool:
        """Whether a value of the quantity is NaN or infinite."""
        return any(not math.isfinite(v) for v in self.all(quantity))

    def put(self, quantity: str, value: float, name: str = "") -> None:
        """Add a host number that a hook decided on."""
        self.values.setdefault(quantity, {})[name] = value

    def add(
        self, quantity: str, value: float, name: str = "", reduce: str = "max"
    ) -> None:
        """The same, beside what is there: ``'max'``, ``'min'`` or ``'sum'``."""
        of_quantity = self.values.setdefault(quantity, {})
        old = of_quantity.get(name)
        if old is not None and not math.isnan(value):
            value = old if math.isnan(old) else _REDUCE[reduce]((old, value))
        of_quantity[name] = value


class FlightRecorder:
    """Collects device numbers during an iteration and reads them all at once.

    Args:
        size: How many of the latest records are kept.

    Attributes:
        transfers: Device-to-host copies made so far: at most one per iteration and
            device.
        muted: What is noted is forgotten: it is of no training iteration.
    """

    def __init__(self, size: int = 200) -> None:
        self.records: deque[IterationRecord] = deque(maxlen=size)
        self.transfers = 0
        self.muted = False
        self._pending: list[tuple[str, str, str, Any]] = []

    def note(
        self,
        quantity: str,
        value: Tensor | float | list[float],
        name: str = "",
        reduce: str = "max",
    ) -> None:
        """Remember a number without waiting for it.

        Args:
            quantity: What it is, e.g. ``'backward_loss'``.
            value: 0-d tensor on any device. It is read at the end of the iteration:
                clone it if something writes to it before then. Or 1-d, which is kept
                in the record's ``vectors``; or known to the host already.
            name: Which one, e.g. a module path.
            reduce: ``'max'``, ``'min'`` or ``'sum'``: what to do with several values
                noted under one name. NaN prevails.
        """
        if not self.muted:
            value = value.detach() if isinstance(value, Tensor) else value
            self._pending.append((quantity, name, reduce, value))

    def discard(self) -> None:
        """Forget what was noted, as after an iteration that raised."""
        self._pending.clear()

    def close(self, iteration: int) -> IterationRecord:
        """End the iteration: copy what was noted to the host and keep the record."""
        record = IterationRecord(iteration)
        for (quantity, name, reduce, _), value in zip(self._pending, self._read()):
            if isinstance(value, list):
                of_name = record.vectors.setdefault(quantity, {})
                of_name.setdefault(name, []).append(value)
            else:
                record.add(quantity, value, name, reduce)
        self._pending.clear()
        self.records.append(record)
        return record

    def _read(self) -> list[float | list[float]]:
        """What is pending, as host numbers; in one launch and one copy per device."""
        values: list[Any] = [value for *_, value in self._pending]
        by_device: dict[torch.device, list[int]] = {}
        for i, value in enumerate(values):
            if isinstance(value, Tensor):
                by_device.setdefault(value.device, []).append(i)
        for indices in by_device.values():
            noted = [values[i] for i in indices]
            parts = [t if t.dtype is torch.float32 else t.float() for t in noted]
            numbers = torch.cat([t if t.ndim else t.view(1) for t in parts]).tolist()
            self.transfers += 1
            start = 0
            for i, t in zip(indices, noted):
                end = start + (len(t) if t.ndim else 1)
                values[i] = numbers[start:end] if t.ndim else numbers[start]
                start = end
        return values
