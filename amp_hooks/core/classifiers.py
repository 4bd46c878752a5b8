"""Find the layers whose output is classified, without knowing their names."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

# Names under which heads keep the losses of their classification branches: mmdet's
# loss_cls, loss_obj (YOLO), loss_center_heatmap (CenterNet), mmseg's loss_decode.
CLASSIFICATION_LOSSES = (
    "loss_cls*",
    "loss_obj*",
    "loss_conf*",
    "loss*_heatmap",
    "loss_decode*",
)
_LAYERS = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


class ClassifierFinder:
    """Watches one training forward and names the layers that feed the class losses.

    It remembers the autograd node that every convolution and linear layer leaves
    behind. When a loss module named like :data:`CLASSIFICATION_LOSSES` is called, it
    walks the autograd graph from the prediction back to the nearest of these nodes.

    Args:
        model: The detector, without DDP around it.
        on_output: Called as ``on_output(name, output)`` for each candidate layer, so
            that this first forward can be measured too.

    Attributes:
        found: Names of the layers found so far, in the order of the losses.
    """

    def __init__(
        self, model: nn.Module, on_output: Callable[[str, Tensor], None] | None = None
    ) -> None:
        self.found: list[str] = []
        self.hidden: str | None = None
        self._nodes: dict[Any, str] = {}
        self._handles = []
        for name, module in model.named_modules():
            if isinstance(module, _LAYERS):
                self._handles.append(
                    module.register_forward_hook(self._layer_hook(name, on_output))
                )
            last = name.rsplit(".", 1)[-1]
            if any(fnmatchcase(last, p) for p in CLASSIFICATION_LOSSES):
                self._handles.append(
                    module.register_forward_pre_hook(self._on_loss, with_kwargs=True)
                )

    def _layer_hook(
        self, name: str, on_output: Callable[[str, Tensor], None] | None
    ) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.grad_fn is not None:
                self._nodes[output.grad_fn] = name
                if on_output is not None:
                    on_output(name, output)

        return hook

    def _on_loss(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor) and value.grad_fn is not None:
                for name in self._nearest(value.grad_fn):
                    if name not in self.found:
                        self.found.append(name)

    def _nearest(self, node: Any) -> list[str]:
        names, seen, stack = [], {node}, [node]
        while stack:
            node = stack.pop()
            if node in self._nodes:
                names.append(self._nodes[node])
                continue  # what lies behind a classifier is not the classifier
            for parent, _ in node.next_functions:
                if parent is not None and parent not in seen:
                    seen.add(parent)
                    stack.append(parent)
        return names

    def close(self) -> None:
        """Remove every hook and let go of the graph."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._nodes.clear()
