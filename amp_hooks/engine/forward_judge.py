"""What the forward passes that feed an optimizer step say about it."""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import Tensor

from .condition import Condition
from .nonfinite_forward import ForwardWatch, NonfiniteForward, nonfinite_losses
from .recorder import IterationRecord


class ForwardJudge:
    """Knows what must be finite, and what was not.

    Gradients decide: a loss that is not finite over gradients that are does no harm.
    Of what the watches measure on the way to the loss only that counts which has been
    finite in a healthy iteration; what was not in the first such step is by design.

    Attributes:
        watches: See values of the forward pass: the logits, for one.
        here: What was not finite on this rank in the present iteration.
        harmless: Losses of the present iteration that were not finite and did no harm.
        harmless_propagated: They were part of the loss that was propagated.
        together: Several ranks see the same gradients, for DDP averages them.
        diverged: This rank finds that the run has diverged. Its next loss is made NaN:
            the step is refused on every rank, and there all of them meet.
    """

    def __init__(self) -> None:
        self.watches: list[ForwardWatch] = []
        self.here = NonfiniteForward()
        self.harmless: dict[str, float] = {}
        self.harmless_propagated = False
        self.together = False
        self.diverged: Condition | None = None
        self._since_step = NonfiniteForward()
        self._seen_finite: set[str] = set()
        self._never_finite: set[str] = set()

    def take_flags(self, clamped: Collection[str]) -> list[Tensor]:
        """0-d tensors, one of them above 0 or NaN if the forward pass was not finite.

        Of the forward passes since the last call; still on the device. What has never
        been finite is left out.
        """
        asks = [] if self.diverged is None else [torch.tensor(math.nan)]
        return asks + [
            flag
            for watch in self.watches
            for name, flag in watch.take_flags(clamped)
            if not name or self.trusts(name)
        ]

    def trusts(self, name: str) -> bool:
        """Whether what a watch measures there has been finite in a healthy run."""
        return name in self._seen_finite

    def forget(self) -> None:
        """The accumulation begins anew."""
        self._since_step = NonfiniteForward()

    def judge(
        self,
        record: IterationRecord,
        clamped: Collection[str],
        raised: list[int] | None,
    ) -> NonfiniteForward:
        """What the verdict on the forward passes rests on; sets ``record.ranks``.

        A collective if gradients are not finite, or an exception was dealt with: then
        every rank is here.

        Args:
            record: Of the present iteration.
            clamped: Layers whose infinities do no harm.
            raised: Ranks on which the training step raised because of NaN, if it did.
        """
        grads_finite = not any(record.all("found_inf"))
        losses, propagated = nonfinite_losses(record)
        self.harmless, self.harmless_propagated = {}, propagated
        if _known_harmless(record) or not propagated:
            if len(losses) > 1:  # the total is but the sum of the others
                losses.pop("loss", None)
            self.harmless, losses = losses, {}
        found, known = self._values(record, clamped)
        if "buffers" in self._since_step.values:  # an earlier batch of this step did it
            found.pop("buffers", None)
            known.pop("buffers", None)
        self.here = NonfiniteForward()
        self.here.add(losses, known if grads_finite else found)
        self._since_step.add(losses, found)
        self._since_step.diverged = self.diverged
        if raised is not None:
            record.ranks = raised
            return self._since_step
        if grads_finite:
            if self.together:
                # Only this rank knows, and nothing may be decided on it.
                return NonfiniteForward()
            # Between the steps of an accumulation the gradients are not known. A loop
            # whose steps cannot be seen has no other judge than its losses.
            unseen = losses if record.by_loss_alone else {}
            nonfinite = NonfiniteForward(unseen, known)
        elif self.together:
            # Gradients are averaged, so every rank is here. A healthy run never is.
            record.ranks, nonfinite = self._since_step.of_all_ranks()
            return nonfinite
        else:
            nonfinite = self._since_step
        record.ranks = [0] if nonfinite else []
        return nonfinite

    def learn(self, record: IterationRecord, clamped: Collection[str]) -> None:
        """A healthy iteration shows what is finite, and what is not by design."""
        for watch in self.watches:
            for name, finite in watch.finite(record, clamped).items():
                if finite:
                    self._seen_finite.add(name)
                elif record.stepped and not self.trusts(name):
                    self._never_finite.add(name)

    def _values(
        self, record: IterationRecord, clamped: Collection[str]
    ) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        """What the watches saw that may be faulty, and what of it is known to be."""
        found: dict[str, list[str]] = {}
        known: dict[str, list[str]] = {}
        for watch in self.watches:
            for name, finite in watch.finite(record, clamped).items():
                if finite or name in self._never_finite:
                    continue
                found.setdefault(watch.kind, []).append(name)
                # Which buffers count is known from elsewhere.
                if self.trusts(name) or watch.kind == "buffers":
                    known.setdefault(watch.kind, []).append(name)
        return found, known


def _known_harmless(record: IterationRecord) -> bool:
    """Whether each optimizer whose loss is not finite has looked at its gradients."""
    found_inf = record.values.get("found_inf", {})
    losses = record.values.get("backward_loss", {})
    bad = [name for name, loss in losses.items() if not math.isfinite(loss)]
    return record.stepped and all(name in found_inf for name in bad)
