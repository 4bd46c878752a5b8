"""What the forward passes that feed an optimizer step say about it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .condition import Condition
from .failures import Failures
from .nonfinite_forward import ForwardWatch, NonfiniteForward, nonfinite_losses
from .peaks import Peaks, Seen
from .recorder import FlightRecorder, IterationRecord


class ForwardJudge:
    """Knows what must be finite, and what was not.

    Gradients decide: a loss that is not finite over gradients that are does no harm.
    Of what the watches measure on the way to the loss only that counts which has been
    finite in a healthy iteration; what was not in the first such step is by design.

    Attributes:
        clamped: Layers whose logits HeadClampHook bounds at present: infinities in
            them do no harm.
        watches: See values of the forward pass: the logits, for one.
        here: What was not finite on this rank in the present iteration.
        harmless: Losses of the present iteration that were not finite and did no harm.
        harmless_propagated: They were part of the loss that was propagated.
        together: Several ranks see the same gradients, for DDP averages them.
        diverged: This rank finds that the run has diverged. Its next loss is made NaN:
            the step is refused on every rank, and there all of them meet.
    """

    def __init__(self, recorder: FlightRecorder, failures: Failures) -> None:
        self._recorder = recorder
        self._peaks = Peaks(recorder)
        self._failures = failures
        self._flags: list[Tensor] = []  # of the forward passes since the last backward
        self.clamped: set[str] = set()
        self.watches: list[ForwardWatch] = []
        self.here = NonfiniteForward()
        self.harmless: dict[str, float] = {}
        self.harmless_propagated = False
        self.together = False
        self.diverged: Condition | None = None
        self._since_step = NonfiniteForward()
        self._finite: dict[str, dict[str, bool]] = {}  # now, by kind and name
        self._seen_finite: set[str] = set()
        self._never_finite: set[str] = set()

    def measure(self, backward: bool = False) -> None:
        """Measure what the watches have seen; nothing waits for it.

        Args:
            backward: A backward pass is about to begin.
        """
        if self._recorder.muted:
            return
        call = self._failures.call
        nothing: list[Seen] = []
        seen = [(w, call(w, w.take, backward, otherwise=nothing)) for w in self.watches]
        try:
            self._measure([one for _, found in seen for one in found])
        except Exception:
            # Whose it is shows if each is measured by itself.
            for watch, found in seen:
                call(watch, self._measure, found, otherwise=None)

    def _measure(self, seen: list[Seen]) -> None:
        # What has never been finite is not asked to be.
        self._flags += self._peaks.note(
            seen,
            counts=lambda one: not one.name or self.trusts(one.name),
            harmless=lambda one: one.masks or one.name in self.clamped,
        )

    def take_flags(self) -> list[Tensor]:
        """0-d tensors, one of them NaN if the forward pass was not finite.

        Of what was measured since the last call; still on the device.
        """
        taken, self._flags = self._flags, []
        if self.diverged is None:
            return taken
        return [torch.tensor(math.nan, dtype=torch.float32), *taken]

    def complete(self, record: IterationRecord) -> None:
        """Add to a record what the host knows."""
        self._flags.clear()
        self._peaks.tell(record)
        for watch in self.watches:
            watch.complete(record)

    def close(self) -> None:
        """Training is over."""
        self._flags.clear()
        self._peaks.clear()
        for watch in self.watches:
            watch.close()

    def trusts(self, name: str) -> bool:
        """Whether what a watch measures there has been finite in a healthy run."""
        return name in self._seen_finite

    def forget(self) -> None:
        """The accumulation begins anew."""
        self._since_step = NonfiniteForward()

    def judge(
        self,
        record: IterationRecord,
        raised: list[int] | None,
    ) -> NonfiniteForward:
        """What the verdict on the forward passes rests on; sets ``record.ranks``.

        A collective if gradients are not finite, or an exception was dealt with: then
        every rank is here.

        Args:
            record: Of the present iteration.
            raised: Ranks on which the training step raised because of NaN, if it did.
        """
        grads_finite = not any(record.all("found_inf"))
        losses, propagated = nonfinite_losses(record)
        self.harmless, self.harmless_propagated = {}, propagated
        if _known_harmless(record) or not propagated:
            if len(losses) > 1:  # the total is but the sum of the others
                losses.pop("loss", None)
            self.harmless, losses = losses, {}
        found, known = self._values(record)
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

    def learn(self, record: IterationRecord) -> None:
        """A healthy iteration shows what is finite, and what is not by design."""
        for found in self._finite.values():
            for name, finite in found.items():
                if finite:
                    self._seen_finite.add(name)
                elif record.stepped and not self.trusts(name):
                    self._never_finite.add(name)

    def _values(
        self, record: IterationRecord
    ) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        """What the watches saw that may be faulty, and what of it is known to be."""
        found: dict[str, list[str]] = {}
        known: dict[str, list[str]] = {}
        self._finite = {w.kind: w.finite(record, self.clamped) for w in self.watches}
        for kind, of_watch in self._finite.items():
            for name, finite in of_watch.items():
                if finite or name in self._never_finite:
                    continue
                found.setdefault(kind, []).append(name)
                # Which buffers count is known from elsewhere.
                if self.trusts(name) or kind == "buffers":
                    known.setdefault(kind, []).append(name)
        return found, known


def _known_harmless(record: IterationRecord) -> bool:
    """Whether each optimizer whose loss is not finite has looked at its gradients."""
    found_inf = record.values.get("found_inf", {})
    losses = record.values.get("backward_loss", {})
    bad = [name for name, loss in losses.items() if not math.isfinite(loss)]
    return record.stepped and all(name in found_inf for name in bad)
