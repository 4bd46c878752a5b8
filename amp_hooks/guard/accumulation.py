"""What a training iteration changes before any gradient has been looked at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from mmengine.runner import Runner
from torch import Tensor

from ..engine import private, torch_api
from ..engine.averaging import ema_hooks
from ..engine.live_buffers import LiveBuffer, LiveBuffers, flat_views, is_flat
from ..engine.run import iter_wrappers
from ..engine.tensors import overlaps_itself


class AccumulationStart:
    """Buffers, and EMA if need be, as they were when the accumulation began.

    An accumulation is the iterations that feed one optimizer step. The forward pass
    writes BatchNorm statistics long before anyone sees the gradients, and EMAHook
    averages in each of them.

    Args:
        runner: In training.
        live: The buffers of its model.
    """

    def __init__(self, runner: Runner, live: LiveBuffers) -> None:
        self._live = live
        self._buffers, self._ema = FlatCopies([]), SavedTensors()
        self._saved: list[LiveBuffer] = []
        wrappers = [wrapper for _, wrapper in iter_wrappers(runner.optim_wrapper)]
        # Otherwise the update of the one iteration is left out, which needs no copy.
        self._keeps_ema = any(private.accumulative_counts(w) > 1 for w in wrappers)

    def save(self, runner: Runner) -> None:
        """Copy, on the device and without waiting for it."""
        live = self._live.now()
        if live is not self._saved:
            self._saved = live
            self._buffers = FlatCopies([buffer.tensor for buffer in live])
        self._buffers.save()
        if self._keeps_ema:
            self._ema.save(list(ema_tensors(runner)))

    def restore(self, runner: Runner) -> None:
        """Put it back, bit for bit."""
        targets = []
        for buffer, copy in zip(self._saved, self._buffers.copies):
            live = private.buffers_of(buffer.module).get(buffer.name)
            # Replaced meanwhile, or of the kind that cannot be written to.
            if live is None or live.shape != copy.shape or overlaps_itself(live):
                live = private.buffers_of(buffer.module)[buffer.name] = copy.clone()
            targets.append(live)
        self._buffers.restore(targets)
        if self._keeps_ema:
            self._ema.restore(list(ema_tensors(runner)))


def ema_tensors(runner: Runner) -> Iterator[Tensor]:
    """Every parameter and buffer of the averaged models."""
    for hook in ema_hooks(runner):
        yield from hook.ema_model.state_dict().values()


class FlatCopies:
    """Copies of tensors that are saved again and again, as they are at the time.

    Those of one dtype and device are copied into one, in one launch.

    Args:
        tensors: To be saved; in the memory that they have now.

    Attributes:
        copies: As last saved; overwritten by the next save.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._parts: list[tuple[list[Tensor], Tensor]] = []
        self._others: list[tuple[Tensor, Tensor]] = []
        copies: dict[int, Tensor] = {}
        for kind in torch_api.kinds_of(tensors).values():
            flat = [i for i in kind if is_flat(tensors[i])]
            if flat:
                parts = flat_views([tensors[i] for i in flat])
                sizes = [len(part) for part in parts]
                whole = parts[0].new_empty(sum(sizes))
                self._parts.append((parts, whole))
                for i, copy in zip(flat, whole.split(sizes)):
                    copies[i] = copy.view(tensors[i].shape)
        for i, tensor in enumerate(tensors):
            if i not in copies:
                copies[i] = torch.empty_like(tensor)
                self._others.append((copies[i], tensor.detach()))
        self.copies = [copies[i] for i in range(len(tensors))]

    def save(self) -> None:
        """Copy them. All of it is detached, so that no graph sees it."""
        for parts, whole in self._parts:
            torch.cat(parts, out=whole)
        for copy, tensor in self._others:
            copy.copy_(tensor)

    @torch.no_grad()
    def restore(self, tensors: Sequence[Tensor]) -> None:
        """Write the copies into ``tensors``, of the shapes that were saved."""
        torch_api.copy_all(tensors, self.copies)


class SavedTensors:
    """Copies of tensors; nothing waits for the device.

    Attributes:
        copies: As last saved; overwritten by the next save.
    """

    def __init__(self) -> None:
        self.copies: list[Tensor] = []

    @torch.no_grad()
    def save(self, tensors: Sequence[Tensor]) -> None:
        """Copy them. Memory is allocated only if they are others than before."""
        if not _alike(tensors, self.copies):
            self.copies = [torch.empty_like(t) for t in tensors]
        torch_api.copy_all(self.copies, tensors)

    @torch.no_grad()
    def restore(self, tensors: Sequence[Tensor]) -> None:
        """Write the copies into ``tensors``, which are those that were saved."""
        torch_api.copy_all(tensors, self.copies)


def _alike(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    return len(a) == len(b) and all(
        x.shape == y.shape and x.dtype == y.dtype and x.device == y.device
        for x, y in zip(a, b)
    )
