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
    numbers: dict[str, float] = {}
    for name, value in outputs.items() if outputs else ():
        if "loss" not in name:
            continue
        if isinstance(value, Tensor):
            if value.numel() == 1:
                recorder.note("loss", value.reshape(()), name)
        elif isinstance(value, (int, float)):
            numbers[name] = float(value)
    record = recorder.close(iteration)
    for name, number in numbers.items():
        record.put("loss", number, name)
    return record
