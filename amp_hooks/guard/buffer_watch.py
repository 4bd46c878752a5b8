"""See a buffer become NaN or infinite, whatever the loss says."""

from __future__ import annotations

import math
from collections.abc import Container

import torch
from torch import Tensor, nn

from ..engine import torch_api
from ..engine.by_design import ByDesign
from ..engine.live_buffers import LiveBuffer, LiveBuffers, flat_views, is_flat
from ..engine.patch import Guard, unguarded
from ..engine.peaks import Seen
from ..engine.recorder import FlightRecorder, IterationRecord
from ..engine.tensors import measurable, nonfinite_names, peak_of


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
        self._live: LiveBuffers | None = None
        self._watched: list[LiveBuffer] = []
        # Of these: those of norms, in parts of a dtype and device, and all others.
        self._parts: list[list[Tensor]] = []
        self._others: list[Tensor] = []
        self._chosen_of: list[LiveBuffer] | None = None
        self._known: tuple[bool, set[str]] = (False, set())

    def watch(self, live: LiveBuffers, by_design: ByDesign) -> None:
        """Look at the floating-point buffers of a model from now on."""
        self._by_design = by_design
        self._live = live

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
        watched = {b.path: b.tensor for b in self._watched if b.of_norm}
        if others := [b for b in self._watched if not b.of_norm]:
            positive = torch_api.without_negative([b.tensor for b in others])
            watched.update(zip((b.path for b in others), positive))
        return dict.fromkeys(nonfinite_names(watched, limit=5), False)

    def take(self, backward: bool) -> list[Seen]:
        """All of them, as the forward pass has left them."""
        if not backward or self._live is None:
            return []
        self._choose(self._live.now(memory=False))
        # One tensor in the place of many: a norm of each takes longer than the copy.
        peaks = [peak_of(torch.cat(parts)) for parts in self._parts]
        if self._others:
            raw = torch_api.peaks_of(torch_api.without_negative(self._others))
            peaks += [peak.float() for peak in raw]
        return [Seen("", peak, self._tell) for peak in peaks]

    def _choose(self, live: list[LiveBuffer]) -> None:
        """Those that must be finite; of buffers that may mask a part."""
        design = self._by_design
        if self._chosen_of is live and self._known == (design.settled, design.names):
            return
        self._chosen_of, self._known = live, (design.settled, set(design.names))
        self._watched = [
            b
            for b in live
            if (b.of_norm or design.settled)
            and b.path not in design.names
            and measurable(b.tensor)
        ]
        norms = [b.tensor for b in self._watched if b.of_norm]
        self._others = [b.tensor.detach() for b in self._watched if not b.of_norm]
        self._others += [t.detach() for t in norms if not is_flat(t)]
        flat = flat_views([t for t in norms if is_flat(t)])
        kinds = torch_api.kinds_of(flat).values()
        self._parts = [[flat[i] for i in kind] for kind in kinds]

    def _tell(self, record: IterationRecord, peak: float) -> None:
        self._faulty |= not math.isfinite(peak)

    def close(self) -> None:
        """Let go of the model."""
        self._live = self._chosen_of = None
        for kept in (self._watched, self._parts, self._others):
            kept.clear()
