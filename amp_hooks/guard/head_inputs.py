"""Keep NaN out of the losses of a head: what it hands to them is made finite."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..engine import torch_api
from ..engine.named import named_modules
from ..engine.patch import Guard, unguarded, wrap
from ..engine.peaks import Seen
from ..engine.recorder import FlightRecorder, IterationRecord
from ..engine.tensors import measurable, overlaps_itself, peak_of
from ..engine.traceable import LayerWhileOn

# Where mmdet heads turn predictions into losses: dense heads, and RoI heads.
_LOSS_METHODS = ("loss_by_feat", "loss_and_target")
# These neither raise nor assert, whatever they are given, if their samples are assigned
# by anchors or proposals alone.
_HARDY = (
    "AnchorHead.loss_by_feat",
    "FCOSHead.loss_by_feat",
    "RPNHead.loss_by_feat",
    "BBoxHead.loss_and_target",
    "FCNMaskHead.loss_and_target",
)
_TOGETHER = 64 * 2**20  # bytes: copies of larger predictions might not fit


class HeadInputs:
    """Replaces NaN and infinities in predictions, and remembers that there were some.

    An assigner that is given NaN raises (mmdetection#8155), and on CUDA
    ``F.binary_cross_entropy`` in SimOTA kills the context with a device-side assert. On
    several GPUs it is worse: the other ranks wait in a collective of the loss. Finite
    numbers keep all of them going until the step is refused.

    A head is looked at but left alone until its predictions have been finite in a
    healthy iteration: what never is finite is by design.

    Args:
        recorder: In whose records ``head_peak`` is the largest magnitude, by head.

    Attributes:
        kind: Of what it sees, for the ledger.
        layers: The heads.
        trusts: Whether a head's predictions have been finite.
    """

    kind = "heads"
    together = False  # what one rank does not see is not refused for it
    on = True

    def __init__(self, recorder: FlightRecorder) -> None:
        self._recorder = recorder
        self.guarded: Guard = unguarded
        self.layers: dict[str, nn.Module] = {}
        self.trusts: Callable[[str], bool] = lambda name: False
        self._seen: list[Seen] = []
        self._undo: list[Callable[[], None]] = []

    def watch(self, model: nn.Module, trusts: Callable[[str], bool]) -> None:
        """Stand before the losses of every head that NaN could make raise."""
        self.trusts = trusts
        for name, module in named_modules(model):
            for method in _LOSS_METHODS:
                if callable(getattr(module, method, None)) and not hardy(
                    module, method
                ):
                    self.layers[name] = module
                    self._wrap(name, module, method)

    def end_iteration(self) -> str | None:
        """Forget what no backward pass has asked for."""
        self._seen.clear()
        return None

    def complete(self, record: IterationRecord) -> None:
        """The host knows nothing more."""

    def finite(
        self, record: IterationRecord, clamped: Container[str]
    ) -> dict[str, bool]:
        """Which heads were called, and whether their predictions were finite."""
        peaks = record.values.get("head_peak", {})
        return {name: peak - peak == 0 for name, peak in peaks.items()}

    def take(self, backward: bool) -> list[Seen]:
        """What was handed to losses since the last call."""
        taken, self._seen = self._seen, []
        return taken

    def close(self) -> None:
        """Give the heads back as they were."""
        while self._undo:
            self._undo.pop()()
        self.layers.clear()
        self._seen.clear()
        self.trusts = lambda name: False

    def _wrap(self, name: str, head: nn.Module, method: str) -> None:
        look = self.guarded(self._look)

        def watched(original: Any, *args: Any, **kwargs: Any) -> Any:
            # Not in evaluation, and not where a bad batch is run again as it was.
            if torch.is_grad_enabled() and not self._recorder.muted:
                look(name, (args, kwargs))
            return original(*args, **kwargs)

        self._undo.append(wrap(head, method, LayerWhileOn(self, watched)))

    def _look(self, name: str, given: Any) -> None:
        predictions = [*_predictions(given)]
        if not predictions:
            return
        trusted = self.trusts(name)

        def tell(record: IterationRecord, peak: float) -> None:
            record.add("head_peak", peak, name)

        for kind in torch_api.kinds_of(predictions).values():
            same = [predictions[i] for i in kind]
            peak = make_finite(same) if trusted else _peak(same)
            self._seen.append(Seen(name, peak, tell))


@torch.no_grad()
def make_finite(tensors: list[Tensor]) -> Tensor:
    """Replace NaN and infinities by 0, in place and unseen by autograd.

    Finite values stay what they are, bit for bit and in their layout; where one is
    replaced the gradients are worth nothing anyway. Four launches for them all.

    Args:
        tensors: Of one device and floating dtype, none of them expanded.

    Returns:
        The largest magnitude there was, 0-d float32; NaN or infinite if one was.
    """
    # Not `detach`: what autograd has saved would count as changed.
    data = [x.data for x in tensors]
    if sum(x.numel() * x.element_size() for x in data) > _TOGETHER:
        peak = _peak(tensors)
        for x in data:
            x.nan_to_num_(0.0, 0.0, 0.0)
        return peak
    flat = torch.cat([x.reshape(-1) for x in data])
    peak = peak_of(flat)
    flat.nan_to_num_(0.0, 0.0, 0.0)
    parts = flat.split([x.numel() for x in data])
    torch_api.copy_all(data, [part.view(x.shape) for part, x in zip(parts, data)])
    return peak


@torch.no_grad()
def _peak(tensors: list[Tensor]) -> Tensor:
    peaks = torch_api.peaks_of([x.detach() for x in tensors])
    return torch.stack(peaks).float().max()


def _predictions(tree: Any) -> Iterator[Tensor]:
    """Tensors that come from weights, each once; ground truth does not."""
    seen: set[int] = set()
    stack = [tree]
    while stack:
        item = stack.pop()
        if isinstance(item, (Mapping, list, tuple)):
            if id(item) in seen:
                continue
            seen.add(id(item))
        if isinstance(item, Tensor):
            if not (item.requires_grad and measurable(item)):
                continue
            if id(item) not in seen and not overlaps_itself(item):
                seen.add(id(item))
                yield item
        elif isinstance(item, Mapping):
            stack.extend(item.values())
        elif isinstance(item, (list, tuple)):
            stack.extend(item)


def hardy(head: nn.Module, method: str) -> bool:
    """Whether the losses of a head can neither raise nor assert because of NaN."""
    declared = getattr(type(head), method, None)
    name = getattr(declared, "__qualname__", "")
    module = getattr(declared, "__module__", "")
    assigner = type(getattr(head, "assigner", None)).__name__
    return (
        module.startswith("mmdet.")
        and name in _HARDY
        and assigner in ("NoneType", "MaxIoUAssigner")
    )
