"""See a buffer become NaN or infinite, whatever the loss says."""

from __future__ import annotations

import math
from collections.abc import Container

import torch
from torch import Tensor, nn

from ..engine import private, torch_api
from ..engine.by_design import ByDesign
from ..engine.patch import Guard, unguarded
from ..engine.peaks import Seen
from ..engine.recorder import FlightRecorder, IterationRecord
from ..engine.tensors import measurable, nonfinite_names


class BufferWatch:
    """Looks at the buffers that a forward pass has written, before the backward pass.

    Inputs of 1e30 leave BatchNorm's running_var infinite while loss and gradients are
    finite, in FP32 and BF16 (their squares overflow, and the layer returns zeros);
    every later evaluation is NaN (pytorch#88474). Statistics of BatchNorm are looked at
    from the first iteration on, other buffers once the first healthy step has shown
    which of them are finite by design; a -inf in those may mask something.

    Attributes:
        kind: Of what it sees, for the ledger.
        layers: None; it measures no output.
    """

    kind = "buffers"
    together = False  # what one rank does not see is not refused for it

    def __init__(self, recorder: FlightRecorder) -> None:
        self._faulty = False  # in this iteration
        self.guarded: Guard = unguarded
        self.layers: dict[str, nn.Module] = {}
        self._by_design = ByDesign()
        self._slots: list[tuple[str, nn.Module, str]] = []

    def watch(self, model: nn.Module, by_design: ByDesign) -> None:
        """Look at the floating-point buffers of a model from now on."""
        self._by_design = by_design
        self._slots = [
            (f"{path}.{name}" if path else name, module, name)
            for path, module in model.named_modules()
            for name, buffer in private.buffers_of(module).items()
            if buffer is not None and measurable(buffer)
        ]

    def end_iteration(self) -> str | None:
        """There is nothing to tell."""
        self._faulty = False
        return None

    def complete(self, record: IterationRecord) -> None:
        """The host knows nothing more."""

    def finite(
        self, record: IterationRecord, clamped: Container[str]
    ) -> dict[str, bool]:
        """Whether they are, by name; reads the device if they are not."""
        if not self._faulty:
            return {}
        return dict.fromkeys(nonfinite_names(dict(self._watched()), limit=5), False)

    def take(self, backward: bool) -> list[Seen]:
        """All of them, as the forward pass has left them."""
        if not backward:
            return []
        by_kind: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
        for _, buffer in self._watched():
            by_kind.setdefault((buffer.device, buffer.dtype), []).append(buffer)
        return [Seen("", buffers, self._tell) for buffers in by_kind.values()]

    def _tell(self, record: IterationRecord, peaks: list[float]) -> None:
        self._faulty |= not all(map(math.isfinite, peaks))

    def close(self) -> None:
        """Let go of the model."""
        self._slots.clear()

    def _watched(self) -> list[tuple[str, Tensor]]:
        """Those that must be finite; of buffers that may mask a part."""
        found: list[tuple[str, Tensor]] = []
        others: list[tuple[str, Tensor]] = []
        for path, module, name in self._slots:
            norm = private.is_norm(module)
            if norm and not module.training or not (norm or self._by_design.settled):
                continue
            buffer = private.buffers_of(module).get(name)
            if buffer is None or path in self._by_design.names:
                continue
            (found if norm else others).append((path, buffer.detach()))
        if others:
            paths, buffers = zip(*others)
            found += zip(paths, torch_api.without_negative(buffers))
        return found
