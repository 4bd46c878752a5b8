"""Read the magnitude of the logits at the classifier layers."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from .core.classifiers import ClassifierFinder
from .core.finite import named_tensors
from .core.logits import logit_stats
from .core.recorder import FlightRecorder

_TRIES = 20  # training iterations in which the layers may show up


class LogitWatch:
    """Knows the classifier layers and notes |logit| of each call in training.

    Layers are given by pattern, or found in the first training iteration with a
    classification loss; that iteration is measured too.

    Args:
        recorder: Gets ``logit_absmax`` and ``logit_nonfinite`` by layer.
    """

    def __init__(self, recorder: FlightRecorder) -> None:
        self.recorder = recorder
        self.layers: dict[str, nn.Module] = {}
        self._model: nn.Module | None = None
        self._finder: ClassifierFinder | None = None
        self._first: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self._callbacks: list[Callable[[str, nn.Module], None]] = []
        self._handles: list[Any] = []
        self._tries = 0

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
            for name, module in model.named_modules():
                if any(fnmatchcase(name, pattern) for pattern in targets):
                    self._add(name, module)
                    on_layer(name, module)
            return
        self._callbacks.append(on_layer)
        if self._finder is None and self._tries == 0:
            self._finder = ClassifierFinder(model, self._measure_candidate)

    def end_iteration(self) -> bool:
        """Look at what the finder saw.

        Returns:
            False once the search was given up without a result.
        """
        if self._finder is None:
            return True
        self._tries += 1
        found = self._finder.found
        if found or self._tries >= _TRIES:
            self._finder.close()
            self._finder = None
            modules = dict(self._model.named_modules()) if self._model else {}
            for name in found:
                for stats in self._first.get(name, []):
                    self._note(name, *stats)
                self._add(name, modules[name])
                for callback in self._callbacks:
                    callback(name, modules[name])
        self._first.clear()
        return self._finder is not None or bool(found)

    def _measure_candidate(self, name: str, output: Tensor) -> None:
        self._first.setdefault(name, []).append(logit_stats(output))

    def _add(self, name: str, module: nn.Module) -> None:
        if name in self.layers:
            return
        self.layers[name] = module

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if torch.is_grad_enabled():  # training, not evaluation
                for _, tensor in named_tensors(output):
                    if tensor.is_floating_point():
                        self._note(name, *logit_stats(tensor))

        # First in line, so that it sees the logits before anything clamps them.
        self._handles.append(module.register_forward_hook(hook, prepend=True))

    def _note(self, name: str, absmax: Tensor, nonfinite: Tensor) -> None:
        self.recorder.note("logit_absmax", absmax, name)
        self.recorder.note("logit_nonfinite", nonfinite, name)

    def close(self) -> None:
        """Remove every hook."""
        if self._finder is not None:
            self._finder.close()
            self._finder = None
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._callbacks.clear()
        self.layers.clear()
        self._model = None
