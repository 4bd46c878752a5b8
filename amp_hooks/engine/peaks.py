"""Measure many tensors of a forward pass at once: the largest magnitude of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import torch_api
from .recorder import FlightRecorder, IterationRecord

FLOAT32_MAX = torch.finfo(torch.float32).max


@dataclass(eq=False)
class Seen:
    """Tensors that were seen in a forward pass and are to be measured.

    Attributes:
        name: Where; '' if they must be finite from the first iteration on.
        tensors: Of one device, detached, none of them empty.
        tell: Called as ``tell(record, peaks)`` when the host knows: of each tensor
            the largest magnitude, NaN or infinite if a value is.
        masks: An infinity may be there by design.
        measured: The tensors are such magnitudes already, 0-d float32.
    """

    name: str
    tensors: list[Tensor]
    tell: Callable[[IterationRecord, list[float]], None]
    masks: bool = False
    measured: bool = False


class Peaks:
    """Measures what was seen, in four launches for all of one dtype.

    Args:
        recorder: Brings the numbers home.
    """

    def __init__(self, recorder: FlightRecorder) -> None:
        self._recorder = recorder
        self._measured: list[list[Seen]] = []
        self._zeros: dict[torch.device, Tensor] = {}
        self._caps: dict[tuple[torch.device, tuple[float, ...]], Tensor] = {}

    def measure(
        self,
        seen: Sequence[Seen],
        counts: Callable[[Seen], bool],
        harmless: Callable[[Seen], bool],
    ) -> list[Tensor]:
        """Measure them without waiting for it.

        Args:
            seen: What there is.
            counts: Whether it must be finite.
            harmless: Whether infinities do no harm; NaN always does.

        Returns:
            0-d float32 tensors: 0 if what counts is finite, else NaN.
        """
        groups: dict[tuple[torch.device, torch.dtype], list[Seen]] = {}
        for one in seen:
            first = one.tensors[0]
            groups.setdefault((first.device, first.dtype), []).append(one)
        flags = []
        for (device, _), group in groups.items():
            strict = [one for one in group if counts(one)]
            if len(strict) < len(group):  # what counts comes first
                group = [*strict, *(one for one in group if one not in strict)]
            peaks = _peaks_of(group)
            self._recorder.note("peaks", peaks, str(len(self._measured)))
            self._measured.append(group)
            if strict:
                caps = [
                    FLOAT32_MAX if harmless(one) else torch.inf
                    for one in strict
                    for _ in one.tensors
                ]
                flags.append(self._flag(device, peaks[: len(caps)], tuple(caps)))
        return flags

    def tell(self, record: IterationRecord) -> None:
        """The host knows the numbers: let those who saw the tensors know them."""
        known = record.vectors.get("peaks", {})
        measured, self._measured = self._measured, []
        for place, group in enumerate(measured):
            for peaks in known.get(str(place), []):
                start = 0
                for one in group:
                    end = start + len(one.tensors)
                    one.tell(record, peaks[start:end])
                    start = end

    def clear(self) -> None:
        """Let go of every tensor."""
        self._measured.clear()
        self._zeros.clear()
        self._caps.clear()

    def _flag(
        self, device: torch.device, peaks: Tensor, caps: tuple[float, ...]
    ) -> Tensor:
        if min(caps) < torch.inf:
            key = (device, caps)
            if key not in self._caps:
                self._caps = {key: torch.tensor(caps, device=device)}
            peaks = torch.minimum(peaks, self._caps[key])  # NaN stays
        zeros = self._zeros.get(device)
        if zeros is None or len(zeros) < len(peaks):
            zeros = self._zeros[device] = torch.zeros(len(peaks), device=device)
        # 0 * inf and 0 * NaN are NaN.
        return torch.dot(peaks, zeros[: len(peaks)])


def _peaks_of(group: Sequence[Seen]) -> Tensor:
    """In their order, 1-d float32."""
    raw = [t for one in group if not one.measured for t in one.tensors]
    found = iter(torch_api.peaks_of(raw) if raw else [])
    peaks = [t if one.measured else next(found) for one in group for t in one.tensors]
    return torch.stack(peaks).float()
