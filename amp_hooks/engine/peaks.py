"""The peaks of a forward pass, looked at together: what is largest in each tensor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .recorder import FlightRecorder, IterationRecord

FLOAT32_MAX = torch.finfo(torch.float32).max


@dataclass(eq=False)
class Seen:
    """A tensor that was seen in a forward pass, and measured.

    Attributes:
        name: Where; '' if it must be finite from the first iteration on.
        peak: Its largest magnitude, 0-d float32; NaN or infinite if a value is.
        tell: Called as ``tell(record, peak)`` when the host knows.
        masks: An infinity may be there by design.
    """

    name: str
    peak: Tensor
    tell: Callable[[IterationRecord, float], None]
    masks: bool = False


class Peaks:
    """Brings peaks home, and says on the device whether they are as they must be.

    Args:
        recorder: Brings the numbers home.
    """

    def __init__(self, recorder: FlightRecorder) -> None:
        self._recorder = recorder
        self._noted: list[list[Seen]] = []
        self._zeros: dict[torch.device, Tensor] = {}
        self._caps: dict[tuple[torch.device, tuple[float, ...]], Tensor] = {}

    def note(
        self,
        seen: Sequence[Seen],
        counts: Callable[[Seen], bool],
        harmless: Callable[[Seen], bool],
    ) -> list[Tensor]:
        """Remember them without waiting, in two or three launches for all.

        Args:
            seen: What there is.
            counts: Whether it must be finite.
            harmless: Whether infinities do no harm; NaN always does.

        Returns:
            0-d float32 tensors: 0 if what counts is finite, else NaN.
        """
        by_device: dict[torch.device, list[Seen]] = {}
        for one in seen:
            by_device.setdefault(one.peak.device, []).append(one)
        flags = []
        for device, group in by_device.items():
            strict = [one for one in group if counts(one)]
            if len(strict) < len(group):  # what counts comes first
                group = [*strict, *(one for one in group if one not in strict)]
            peaks = torch.stack([one.peak for one in group])
            self._recorder.note("peaks", peaks, str(len(self._noted)))
            self._noted.append(group)
            if strict:
                caps = [FLOAT32_MAX if harmless(s) else torch.inf for s in strict]
                flags.append(self._flag(device, peaks[: len(caps)], tuple(caps)))
        return flags

    def tell(self, record: IterationRecord) -> None:
        """The host knows the numbers: let those who saw the tensors know them."""
        known = record.vectors.get("peaks", {})
        noted, self._noted = self._noted, []
        for place, group in enumerate(noted):
            for peaks in known.get(str(place), []):
                for one, peak in zip(group, peaks):
                    one.tell(record, peak)

    def clear(self) -> None:
        """Let go of every tensor."""
        self._noted.clear()
        self._zeros.clear()
        self._caps.clear()

    def _flag(
        self, device: torch.device, peaks: Tensor, caps: tuple[float, ...]
    ) -> Tensor:
        if min(caps) < torch.inf:
            key = (device, caps)
            if key not in self._caps:
                caps_of = torch.tensor(caps, dtype=peaks.dtype, device=device)
                self._caps = {key: caps_of}
            peaks = torch.minimum(peaks, self._caps[key])  # NaN stays
        zeros = self._zeros.get(device)
        if zeros is None or len(zeros) < len(peaks):
            zeros = peaks.new_zeros(len(peaks))
            self._zeros[device] = zeros
        # 0 * inf and 0 * NaN are NaN.
        return torch.dot(peaks, zeros[: len(peaks)])
