"""What was not finite in the forward pass, on this rank and on the others."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import mmengine.dist as dist
from torch import Tensor, nn

from .recorder import IterationRecord


class ForwardWatch(Protocol):
    """Measures values of the forward pass and knows which of them must be finite.

    Attributes:
        layers: The modules whose output it measures, by path.
    """

    @property
    def layers(self) -> Mapping[str, nn.Module]: ...  # noqa: D102

    def end_iteration(self) -> str | None:
        """The iteration is over; what there is to tell the user, if anything."""

    def complete(self, record: IterationRecord) -> None:
        """Add to a record what the host knows."""

    def nonfinite_layers(
        self, record: IterationRecord, clamped: Container[str]
    ) -> list[str]:
        """Layers whose values are not finite; infinities in clamped ones do no harm."""

    def take_flags(self, clamped: Container[str]) -> list[Tensor]:
        """The same as 0-d tensors on the device, since the last call."""

    def close(self) -> None:
        """Give the model back as it was."""


@dataclass
class NonfiniteForward:
    """What was not finite in the forward passes that feed one optimizer step.

    Attributes:
        losses: Losses that were not finite, with their value.
        layers: Classifier layers whose logits were not.
    """

    losses: dict[str, float] = field(default_factory=dict)
    layers: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.losses or self.layers)

    def add(self, record: IterationRecord, layers: list[str]) -> None:
        """Take in another iteration.

        Args:
            record: Its losses are looked at.
            layers: Layers whose logits were not finite in it.
        """
        for name, loss in record.values.get("loss", {}).items():
            if not math.isfinite(loss):
                self.losses[name] = loss
        self.layers += [layer for layer in layers if layer not in self.layers]

    @property
    def fields(self) -> dict[str, Any]:
        """What there is to tell, for the ledger."""
        known = dict(losses=self.losses, layers=self.layers)
        return {name: value for name, value in known.items() if value}

    def of_all_ranks(self) -> tuple[list[int], NonfiniteForward]:
        """Ranks where there was anything, and what it was on the first of them.

        A collective: call it on every rank.
        """
        everyone = dist.all_gather_object(self)
        ranks = [rank for rank, found in enumerate(everyone) if found]
        return ranks, everyone[ranks[0]] if ranks else NonfiniteForward()
