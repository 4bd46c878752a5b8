"""What a training iteration changes before any gradient has been looked at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from mmengine.runner import Runner
from torch import Tensor, nn

from ..engine import private, torch_api
from ..engine.averaging import ema_hooks
from ..engine.run import bare_model, iter_wrappers
from ..engine.tensors import overlaps_itself


class AccumulationStart:
    """Buffers, and EMA if need be, as they were when the accumulation began.

    An accumulation is the iterations that feed one optimizer step. The forward pass
    writes BatchNorm statistics long before anyone sees the gradients, and EMAHook
    averages in each of them.
    """

    def __init__(self, runner: Runner) -> None:
        self._slots = [
            (module, name)
            for module in bare_model(runner).modules()
            for name, buffer in private.buffers_of(module).items()
            if buffer is not None
        ]
        self._buffers, self._ema = SavedTensors(), SavedTensors()
        self._saved: list[tuple[nn.Module, str]] = []
        wrappers = [wrapper for _, wrapper in iter_wrappers(runner.optim_wrapper)]
        # Otherwise the update of the one iteration is left out, which needs no copy.
        self._keeps_ema = any(private.accumulative_counts(w) > 1 for w in wrappers)

    def save(self, runner: Runner) -> None:
        """Copy, on the device and without waiting for it."""
        self._saved = [
            (module, name)
            for module, name in self._slots
            if _can_change(module) and private.buffers_of(module).get(name) is not None
        ]
        self._buffers.save(self._live())
        if self._keeps_ema:
            self._ema.save(list(ema_tensors(runner)))

    def restore(self, runner: Runner) -> None:
        """Put it back, bit for bit."""
        for (module, name), copy in zip(self._saved, self._buffers.copies):
            live = private.buffers_of(module).get(name)
            # Replaced meanwhile, or of the kind that cannot be written to.
            if live is None or live.shape != copy.shape or overlaps_itself(live):
                private.buffers_of(module)[name] = copy.clone()
        self._buffers.restore(self._live())
        if self._keeps_ema:
            self._ema.restore(list(ema_tensors(runner)))

    def _live(self) -> list[Tensor]:
        # `get_buffer` takes most of the time of a copy in a model of 100 BatchNorms.
        live = [private.buffers_of(module)[name] for module, name in self._saved]
        return [buffer for buffer in live if buffer is not None]


def ema_tensors(runner: Runner) -> Iterator[Tensor]:
    """Every parameter and buffer of the averaged models."""
    for hook in ema_hooks(runner):
        yield from hook.ema_model.state_dict().values()


def _can_change(module: nn.Module) -> bool:
    # Frozen BatchNorm, which most detectors have in their backbone, updates nothing.
    return module.training or not private.is_norm(module)


class SavedTensors:
    """Copies of tensors; nothing waits for the device.

    Attributes:
        copies: As last saved; overwritten by the next save.
    """

    def __init__(self) -> None:
        self.copies: list[Tensor] = []
        self._kinds: list[list[int]] = []  # indices of those of one dtype and device

    @torch.no_grad()
    def save(self, tensors: Sequence[Tensor]) -> None:
        """Copy them, in a launch for each dtype and device.

        Memory is allocated only if they are others than before.
        """
        if not _alike(tensors, self.copies):
            self.copies = [torch.empty_like(t) for t in tensors]
            kinds: dict[tuple[torch.dtype, torch.device], list[int]] = {}
            for i, t in enumerate(tensors):
                kinds.setdefault((t.dtype, t.device), []).append(i)
            self._kinds = list(kinds.values())
        self._copy(self.copies, tensors)

    @torch.no_grad()
    def restore(self, tensors: Sequence[Tensor]) -> None:
        """Write the copies into ``tensors``, which are those that were saved."""
        self._copy(tensors, self.copies)

    def _copy(self, targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
        for kind in self._kinds:
            torch_api.copy_all([targets[i] for i in kind], [sources[i] for i in kind])


def _alike(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    return len(a) == len(b) and all(
        x.shape == y.shape and x.dtype == y.dtype and x.device == y.device
        for x, y in zip(a, b)
    )
