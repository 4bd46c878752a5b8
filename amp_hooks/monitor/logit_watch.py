"""Read the magnitude of the logits at the classifier layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Container
from contextlib import ExitStack
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from ..engine import private
from ..engine.compiling import eager
from ..engine.named import named_modules
from ..engine.patch import Guard, unguarded
from ..engine.peaks import Seen
from ..engine.recorder import FlightRecorder, IterationRecord
from ..engine.remark import Remark
from ..engine.tensors import named_tensors, peak_of
from ..engine.traceable import Later
from ..engine.words import first_names
from .classifiers import ClassifierFinder
from .logits import LogitStats, infinity_is_overflow, largest_number, logit_stats

_TRIES = 20  # training iterations in which the layers may show up


class LogitWatch:
    """Knows the classifier layers and notes |logit| of each call in training.

    Layers are given by pattern, or found in the first training iteration with a
    classification loss; that iteration is measured too. Where there is no such loss,
    the layers that other losses lead to are watched in their place.

    Args:
        recorder: In whose records are ``logit_absmax``, ``logit_nan`` and ``logit_inf``
            by layer. Counts are taken where a value is not finite; where somebody has
            replaced such values meanwhile, 1 stands for however many.

    Attributes:
        kind: Of what it sees, for the ledger.
        layers: That are watched, by name.
        predictions: Those that are no classifiers, where there is none.
        listeners: Called as ``listen(name, logits)`` with those of a known layer.
    """

    kind = "layers"
    together = False  # what one rank does not see is not refused for it

    def __init__(self, recorder: FlightRecorder) -> None:
        self.recorder = recorder
        self.guarded: Guard = unguarded
        self.layers: dict[str, nn.Module] = {}
        self.predictions: list[str] = []
        self.listeners: list[Callable[[str, Tensor], None]] = []
        self._limits: dict[str, float] = {}  # largest number of the layer's precision
        self._model: nn.Module | None = None
        self._finder: ClassifierFinder | None = None
        self._search = ExitStack()
        self._first: dict[str, list[LogitStats]] = {}
        self._measured: set[str] = set()  # in the forward pass of this iteration
        self._callbacks: list[Callable[[str, nn.Module], None]] = []
        self._handles: list[Any] = []
        self._hooks: list[Later] = []
        self._tries = 0
        self._seen: list[Seen] = []

    def watch(
        self,
        model: nn.Module,
        targets: list[str],
        on_layer: Callable[[str, nn.Module], None],
    ) -> None:
        """Watch the modules that match ``targets``, or have the layers found.

        Args:
            model: The detector, without DDP around it.
            targets: fnmatch patterns, each of which matches; empty for the search.
            on_layer: Called as ``on_layer(name, module)`` for each layer, at once or
                when it is found.
        """
        self._model = model
        if targets:
            for name, module in named_modules(model):
                if any(fnmatchcase(name, pattern) for pattern in targets):
                    self._add(name, module)
                    on_layer(name, module)
            return
        self._callbacks.append(on_layer)
        if self._finder is None and self._tries == 0:
            # Nothing is compiled before it is known what is watched.
            self._search.enter_context(eager())
            self._finder = ClassifierFinder(
                model, self._measure_candidate, self.guarded
            )
            self._search.callback(self._finder.close)

    def end_iteration(self) -> str | None:
        """Look at what the finder saw.

        Returns:
            A message for the user, once: when the search is given up. A ``Remark``
            where all is as it should be.
        """
        self._measured.clear()
        self._seen.clear()
        for hook in self._hooks:
            hook.forget()
        if self._finder is None:
            return None
        self._tries += 1
        found, hidden = self._finder.found, self._finder.hidden
        predictions = [] if found or hidden else self._finder.predictions
        if not (found or hidden) and self._tries < _TRIES:
            self._first.clear()
            return None
        self._search.close()
        self._finder = None
        modules = {} if self._model is None else dict(named_modules(self._model))
        for name in found:
            for stats in self._first.get(name, []):
                self._note(name, stats)
            self._add(name, modules[name])
            for callback in self._callbacks:
                callback(name, modules[name])
        self._first.clear()
        if found and not hidden:
            return None
        if predictions:
            self.predictions = predictions
            for name in predictions:
                self._add(name, modules[name])
            return Remark(
                f"no classification loss in {_TRIES} iterations: there is no "
                "classifier to clamp, unless 'targets' names one. The magnitude of the "
                f"predictions is watched instead: {first_names(predictions)}."
            )
        why = hidden or f"no call of a classification loss in {_TRIES} iterations"
        return (
            f"a classification layer could not be found: {why}. Or name the layers "
            "yourself, for example ClsScoreMonitorHook(targets='*.fc_cls')."
        )

    def complete(self, record: IterationRecord) -> None:
        """Add to a record what the host knows: each layer's largest number."""
        for name in record.values.get("logit_absmax", {}):
            record.put("logit_limit", self._limits[name], name)

    def nonfinite_layers(
        self, record: IterationRecord, clamped: Container[str] = ()
    ) -> list[str]:
        """Layers whose logits hold NaN, or infinities that are not there by design.

        A convolution or linear layer gives an infinity only by overflow. Any other
        module may mask positions with it (text tokens in Grounding DINO, say); there
        the loss tells whether it does harm. In ``clamped`` layers no infinity does.
        """
        return [
            name
            for name, count in record.values.get("logit_nan", {}).items()
            if count
            or name not in clamped
            and record.get("logit_inf", name)
            and name in self.layers  # else it is closed
            and infinity_is_overflow(self.layers[name])
        ]

    def finite(
        self, record: IterationRecord, clamped: Container[str]
    ) -> dict[str, bool]:
        """Which layers were measured, and whether their logits are as they must be."""
        faulty = self.nonfinite_layers(record, clamped)
        return {n: n not in faulty for n in record.values.get("logit_nan", {})}

    def take(self, backward: bool) -> list[Seen]:
        """Logits of the forward pass since the last call, to be measured."""
        for hook in self._hooks:
            hook.catch_up()
        taken, self._seen = self._seen, []
        return taken

    def _measure_candidate(self, name: str, output: Tensor) -> None:
        if not (self.recorder.muted or self._recomputed(name)):
            self._limits[name] = largest_number(output)
            self._first.setdefault(name, []).append(logit_stats(output))

    def _add(self, name: str, module: nn.Module) -> None:
        if name in self.layers:
            return
        self.layers[name] = module

        overflow = infinity_is_overflow(module)

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            # Gradients are off in evaluation.
            quiet = self.recorder.muted or not torch.is_grad_enabled()
            if quiet or self._recomputed(name):
                return
            for _, tensor in named_tensors(output):
                if tensor.is_floating_point():
                    self._limits[name] = largest_number(tensor)
                    self._see(name, tensor.detach(), overflow)
                    for listen in self.listeners:
                        listen(name, tensor)

        self._hooks.append(later := Later(self.guarded(hook)))
        # First in line, so that it sees the logits before anything clamps them.
        self._handles.append(module.register_forward_hook(later, prepend=True))

    def _recomputed(self, name: str) -> bool:
        """Whether activation checkpointing runs again what was measured already.

        Its re-entrant kind runs the forward pass without gradients and is seen here in
        the backward pass only; the other kind is seen in both.
        """
        if not private.in_backward():
            self._measured.add(name)
            return False
        return name in self._measured

    def _see(self, name: str, logits: Tensor, overflow: bool) -> None:
        """Measure them now, for the model may write to them, and count if need be.

        What is not finite is counted when the host knows that there is something; but
        now where infinities may be there by design, in every iteration.
        """
        empty = not logits.numel()
        if empty or not overflow:
            self._note(name, logit_stats(logits))
        if empty:
            return
        version = private.version_of(logits)

        def tell(record: IterationRecord, peak: float) -> None:
            if overflow:
                as_it_was = private.version_of(logits) == version
                _tell(record, name, logits if as_it_was else None, peak)

        self._seen.append(Seen(name, peak_of(logits), tell, masks=not overflow))

    def _note(self, name: str, stats: LogitStats) -> None:
        self.recorder.note("logit_absmax", stats.absmax, name)
        self.recorder.note("logit_nan", stats.nan, name, reduce="sum")
        self.recorder.note("logit_inf", stats.inf, name, reduce="sum")

    def close(self) -> None:
        """Remove every hook."""
        self._search.close()
        self._finder = None
        for handle in self._handles:
            handle.remove()
        for hook in self._hooks:
            hook.close()
        self._handles.clear()
        self._hooks.clear()
        self._callbacks.clear()
        self._seen.clear()
        self.listeners.clear()
        # The runtime outlives the training, and the model shall not.
        self._model = None
        self.layers = {}


def _tell(
    record: IterationRecord, name: str, logits: Tensor | None, peak: float
) -> None:
    """Add what is known of logits to a record; counts them if some are not finite."""
    if math.isfinite(peak):
        record.add("logit_absmax", peak, name)
        for quantity in ("logit_nan", "logit_inf"):
            record.values.setdefault(quantity, {}).setdefault(name, 0.0)
        return
    absmax = nan = inf = 0.0
    if logits is not None:
        absmax, nan, inf = torch.stack(logit_stats(logits)).tolist()
    if not (nan or inf):
        nan, inf = float(math.isnan(peak)), float(math.isinf(peak))
    record.add("logit_absmax", absmax, name)
    record.add("logit_nan", nan, name, "sum")
    record.add("logit_inf", inf, name, "sum")
