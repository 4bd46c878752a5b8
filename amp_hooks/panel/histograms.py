"""Logits and gradient norms of single iterations, for histograms."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from mmengine.optim import OptimWrapper
from torch import Tensor

from ..engine.patch import Guard, unguarded
from ..engine.runtime import Runtime
from ..monitor.logit_watch import LogitWatch

_MOST_VALUES = 100_000  # of a layer, taken evenly


def thinned(values: Tensor, most: int = _MOST_VALUES) -> Tensor:
    """At most so many of the values, evenly, flat."""
    flat = values.detach().reshape(-1)
    return flat[:: max(1, -(-flat.numel() // most))]


class HistogramProbe:
    """Listens in the iterations it is told to, and is not there in the others.

    Args:
        runtime: Its logits and ``tap`` are listened to.
        guarded: Bears what goes wrong here.
    """

    def __init__(self, runtime: Runtime, guarded: Guard = unguarded) -> None:
        self._note_logits = guarded(self._on_logits)
        self._note_norms = guarded(self._on_gradients)
        self._runtime = runtime
        self._watch = runtime.watch_forward(LogitWatch)
        self._logits: dict[str, list[Tensor]] = {}
        self._norms: dict[str, Tensor] = {}  # by optimizer

    def listen(self) -> None:
        """Take the logits of the coming forward pass, and the next step's gradients."""
        self._logits.clear()
        # The step may still be out since the last time, under gradient accumulation.
        if self._note_logits not in self._watch.listeners:
            self._watch.listeners.append(self._note_logits)
        if self._note_norms not in self._runtime.tap.listeners:
            self._runtime.tap.listeners.append(self._note_norms)

    def collect(self) -> Iterator[tuple[str, np.ndarray]]:
        """Tag and values of each histogram that there is; copies them to the host."""
        if self._note_logits in self._watch.listeners:
            self._watch.listeners.remove(self._note_logits)
        logits, self._logits = self._logits, {}
        for layer, parts in logits.items():
            values = thinned(torch.cat(parts))
            yield f"amp/cls_score/{layer}", values.cpu().numpy()
        if not self._norms:
            return
        self._runtime.tap.listeners.remove(self._note_norms)
        norms, self._norms = self._norms, {}
        for name, values in norms.items():
            host = values.cpu().numpy()
            # A parameter without a gradient has no place on a log axis.
            logs = np.log2(host[host > 0])
            yield "amp/gradnorm_log2_by_parameter" + f"/{name}" * bool(name), logs

    def _on_logits(self, name: str, logits: Tensor) -> None:
        # A copy: what follows may write to the logits in place.
        self._logits.setdefault(name, []).append(thinned(logits).float().clone())

    def _on_gradients(self, name: str, wrapper: OptimWrapper, norms: Tensor) -> None:
        self._norms[name] = norms
