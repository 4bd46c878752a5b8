"""What was not finite in the forward pass, on this rank and on the others."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import mmengine.dist as dist
from torch import nn

from .condition import Condition
from .patch import Guard
from .peaks import Seen
from .recorder import IterationRecord


class ForwardWatch(Protocol):
    """Measures values of the forward pass and knows which of them must be finite.

    Attributes:
        kind: What it looks at, the name of a field in the ledger: layers (classifier
            layers), heads (what they hand to their loss), buffers.
        guarded: Through which all goes that the model calls.
        layers: The modules whose output it measures, by path.
    """

    kind: str
    guarded: Guard

    @property
    def layers(self) -> Mapping[str, nn.Module]: ...  # noqa: D102

    def end_iteration(self) -> str | None:
        """The iteration is over; what there is to tell the user, if anything."""

    def complete(self, record: IterationRecord) -> None:
        """Add to a record what the host knows."""

    def finite(
        self, record: IterationRecord, clamped: Container[str]
    ) -> dict[str, bool]:
        """What was measured, by path, and whether it was finite.

        Infinities in clamped layers do no harm.
        """

    def take(self, backward: bool) -> list[Seen]:
        """What was seen since the last call, to be measured.

        Args:
            backward: A backward pass is about to begin.
        """

    def close(self) -> None:
        """Give the model back as it was."""


@dataclass
class NonfiniteForward:
    """What was not finite in the forward passes that feed one optimizer step.

    Attributes:
        losses: Terms of a loss that was propagated and not finite, with their value;
            the loss itself if it has none.
        values: Other values, by what the watch that saw them calls them.
        diverged: Not a number at all: a rank finds that the run has diverged, and lets
            the others know in this way.
    """

    losses: dict[str, float] = field(default_factory=dict)
    values: dict[str, list[str]] = field(default_factory=dict)
    diverged: Condition | None = None

    def __bool__(self) -> bool:
        return bool(self.losses or self.values or self.diverged)

    def add(self, losses: Mapping[str, float], values: Mapping[str, list[str]]) -> None:
        """Take in another iteration."""
        self.losses.update(losses)
        for kind, names in values.items():
            known = self.values.setdefault(kind, [])
            known += [name for name in names if name not in known]

    @property
    def fields(self) -> dict[str, Any]:
        """What there is to tell, for the ledger."""
        known = dict(losses=self.losses, **self.values)
        told = {name: value for name, value in known.items() if value}
        if len(told) > 1:  # what was not finite went through BatchNorm, too
            told.pop("buffers", None)
        return told

    def of_all_ranks(self) -> tuple[list[int], NonfiniteForward]:
        """Ranks where there was anything, and what it was on the first of them.

        A collective: call it on every rank.
        """
        everyone = dist.all_gather_object(self)
        ranks = [rank for rank, found in enumerate(everyone) if found]
        if not ranks:
            return ranks, NonfiniteForward()
        conditions = [found.diverged for found in everyone if found.diverged]
        first = min(conditions, key=lambda c: c.since or 0) if conditions else None
        return ranks, replace(everyone[ranks[0]], diverged=first)


def nonfinite_losses(record: IterationRecord) -> tuple[dict[str, float], bool]:
    """Losses of a record that are not finite, and whether they were propagated.

    What was given to ``backward`` is the loss; what ``train_step`` returns only names
    its terms, and may hold numbers that are logged and nothing else. A loop that calls
    no ``optim_wrapper.backward`` leaves nothing but these.
    """
    named = _nonfinite(record.values.get("loss", {}))
    if "backward_loss" not in record.values:
        return named, True
    propagated = _nonfinite(record.values["backward_loss"])
    if not propagated:
        return named, False
    return named or {name or "loss": v for name, v in propagated.items()}, True


def _nonfinite(values: Mapping[str, float]) -> dict[str, float]:
    return {name: v for name, v in values.items() if not math.isfinite(v)}
