"""The losses that ``train_step`` returns: tensors, or numbers already."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .recorder import FlightRecorder, IterationRecord


def note_losses(recorder: FlightRecorder, outputs: Any) -> None:
    """Note those that are tensors, under their names."""
    for name, value in (outputs or {}).items():
        if "loss" in name and isinstance(value, Tensor) and value.numel() == 1:
            recorder.note("loss", value.reshape(()), name)


def put_losses(record: IterationRecord, outputs: Any) -> None:
    """Put those that are numbers."""
    for name, value in (outputs or {}).items():
        if "loss" in name and isinstance(value, (int, float)):
            record.put("loss", float(value), name)
