"""The losses that ``train_step`` returns: tensors, or numbers already."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .recorder import FlightRecorder, IterationRecord


def close_with_losses(
    recorder: FlightRecorder, iteration: int, outputs: Any
) -> IterationRecord:
    """End an iteration with its losses in the record, under their own names.

    Args:
        recorder: Of the run.
        iteration: That ends.
        outputs: What ``train_step`` has returned, if anything.
    """
    losses = {name: v for name, v in (outputs or {}).items() if "loss" in name}
    for name, value in losses.items():
        if isinstance(value, Tensor) and value.numel() == 1:
            recorder.note("loss", value.reshape(()), name)
    record = recorder.close(iteration)
    for name, value in losses.items():
        if isinstance(value, (int, float)):
            record.put("loss", float(value), name)
    return record
