"""Find the layers whose output is classified, without knowing their names."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.jit import ScriptModule

from ..engine.named import named_modules
from ..engine.patch import Guard, unguarded, wrap
from .class_losses import is_classification_loss, is_loss, words

_LOSS_METHODS = ("loss_by_feat", "loss_and_target", "loss")
_SCORES = re.compile("(cls|class)_(score|pred|logit)|objectness|^(pred_|seg_)?logits?$")
_NOT_SCORES = set(
    "factor gt gts label labels mask override target targets weight weights".split()
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
_PRODUCT = re.compile("(mm|Mm|mv|Mv|Dot|Linear|Trilinear|Convolution|Cdist)Backward")
_OPAQUE = {
    "CheckpointFunctionBackward": "activation checkpointing with use_reentrant=True "
    "hides the layers behind it; use_reentrant=False shows them",
    "CompiledFunctionBackward": "torch.compile hides the layers behind it",
}


class ClassifierFinder:
    """Watches one training forward and names the layers that feed the class losses.

    It remembers the autograd node that every layer leaves behind. When a loss module
    of a classification branch is called (see :func:`is_classification_loss`), it walks
    the autograd graph from the prediction back to the nearest of these nodes. A head
    that calls none (FreeAnchor has its own formula) is asked for the ``cls_score``,
    ``cls_scores`` or ``objectnesses`` that its ``loss_by_feat``, ``loss_and_target`` or
    ``loss`` was given.

    A layer is a convolution, a linear layer, or any other leaf that owns a weight
    matrix. A module that multiplies matrices without owning one (Grounding DINO
    compares queries with text tokens) counts if the scores are all that it returns.

    Args:
        model: The detector, without DDP around it.
        on_output: Called as ``on_output(name, output)`` for each layer, so that this
            first forward can be measured too.
        guarded: Bears what goes wrong here.

    Attributes:
        found: Names of the layers found so far, in the order of the losses.
        predictions: Those that any other loss module leads to: boxes, heat maps.
        hidden: Why a loss leads to no layer that can be named; None while each does.
    """

    def __init__(
        self,
        model: nn.Module,
        on_output: Callable[[str, Tensor], None] | None = None,
        guarded: Guard = unguarded,
    ) -> None:
        self._guarded = guarded
        self.found: list[str] = []
        self.predictions: list[str] = []
        self.hidden: str | None = None
        self._on_output = on_output
        self._layers: dict[Any, str] = {}  # autograd node of the output to name
        self._begins: dict[Any, list[str]] = {}  # of the inputs of other modules
        self._ends: dict[Any, list[str]] = {}  # of the outputs, innermost first
        self._hits = 0
        self._open = True

        # No method: a copy of the model would copy what it belongs to, and a graph
        # cannot be copied.
        def forget(model: nn.Module, args: Any) -> None:
            self._forget()

        self._handles = [model.register_forward_pre_hook(guarded(forget))]
        self._undo: list[Callable[[], None]] = []
        for name, module in named_modules(model):
            if isinstance(module, ScriptModule):
                continue
            if is_classification_loss(name, module):
                self._on_loss(name, module, self._trace)
                continue
            if is_loss(name, module):
                self._on_loss(name, module, self._trace_prediction)
            watch = self._layer_hook if _is_layer(module) else self._module_hook
            self._handles.append(
                module.register_forward_hook(
                    guarded(watch(name, module)), with_kwargs=True
                )
            )
            for method in _LOSS_METHODS:
                self._wrap(name, module, method)

    def _forget(self) -> None:
        # Of an earlier forward that called no loss: nothing leads there any more.
        self._layers.clear()
        self._begins.clear()
        self._ends.clear()

    def _layer_hook(self, name: str, module: nn.Module) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.grad_fn is not None:
                self._layers[output.grad_fn] = name
                if self._on_output is not None:
                    self._on_output(name, output)

        return hook

    def _module_hook(self, name: str, module: nn.Module) -> Callable[..., None]:
        # Not torch's own activations and norms; they multiply no matrices.
        leaf = next(module.children(), None) is None
        measured = leaf and not type(module).__module__.startswith("torch.nn.")

        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.grad_fn is not None:
                self._ends.setdefault(output.grad_fn, []).append(name)
                if measured and self._on_output is not None:
                    self._on_output(name, output)
                for tensor in _tensors((args, kwargs)):
                    if tensor.grad_fn is not None:
                        self._begins.setdefault(tensor.grad_fn, []).append(name)

        return hook

    def _on_loss(
        self, name: str, module: nn.Module, trace: Callable[[str, list[Any]], None]
    ) -> None:
        signature = inspect.signature(module.forward)

        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            try:
                given = signature.bind(*args, **kwargs).arguments
            except TypeError:  # the call itself will say so
                return
            for argument, value in given.items():
                if not words(argument) & _NOT_SCORES:
                    trace(name, [t.grad_fn for t in _tensors(value)])

        self._handles.append(
            module.register_forward_pre_hook(self._guarded(hook), with_kwargs=True)
        )

    def _wrap(self, name: str, module: nn.Module, method: str) -> None:
        original = getattr(module, method, None)
        if not callable(original) or isinstance(original, nn.Module):
            return
        # The class knows the names of the arguments even where a hook has already put
        # a wrapper of its own on the instance.
        declared = getattr(type(module), method, None)
        signature = inspect.signature(
            original if declared is None else declared.__get__(module)
        )
        scores = [p for p in signature.parameters if _SCORES.search(p)]
        if not scores:
            return

        def nodes(args: Any, kwargs: Any) -> list[Any]:
            given = signature.bind_partial(*args, **kwargs).arguments
            return [t.grad_fn for s in scores for t in _tensors(given.get(s))]

        nodes_of, trace = self._guarded(nodes, []), self._guarded(self._trace)

        def watched(original: Any, *args: Any, **kwargs: Any) -> Any:
            if not self._open:
                return original(*args, **kwargs)
            # Before the call: in-place operations move a tensor to another node.
            found, hits = nodes_of(args, kwargs), self._hits
            result = original(*args, **kwargs)
            if self._hits == hits:  # no loss module of this head led to a layer
                trace(f"{name}.{method}" if name else method, found)
            return result

        self._undo.append(wrap(module, method, watched))

    def _trace(self, loss: str, nodes: list[Any]) -> None:
        for node in nodes:
            if node is None:
                continue
            names, obstacle = self._nearest(node)
            self.found += [n for n in dict.fromkeys(names) if n not in self.found]
            self._hits += len(names) + (obstacle is not None)
            if obstacle is not None:
                self.hidden = f"the scores that {loss} gets: {obstacle}"

    def _trace_prediction(self, loss: str, nodes: list[Any]) -> None:
        for node in filter(None, nodes):
            names, _ = self._nearest(node)
            known = self.predictions
            known += [n for n in dict.fromkeys(names) if n not in known]

    def _nearest(self, root: Any) -> tuple[list[str], str | None]:
        """The layers next to a node, and what stands in the way of others."""
        names: list[str] = []
        obstacle = None
        seen = {root}
        # With the modules whose output, but not yet input, was passed; outermost first.
        stack: list[tuple[Any, tuple[str, ...]]] = [(root, ())]
        while stack:
            node, inside = stack.pop()
            if node in self._layers:
                names.append(self._layers[node])
                continue  # what lies behind a classifier is not the classifier
            inside += tuple(reversed(self._ends.get(node, ())))
            begins = self._begins.get(node, ())
            inside = tuple(n for n in inside if n not in begins)
            operation = node.name()
            if operation in _OPAQUE:
                obstacle = _OPAQUE[operation]
                continue
            if _PRODUCT.search(operation):
                if inside:
                    names.append(inside[-1])
                else:
                    obstacle = "a matrix product that is no module of its own"
                continue
            for parent, _ in node.next_functions:
                if parent is not None and parent not in seen:
                    seen.add(parent)
                    stack.append((parent, inside))
        return names, obstacle

    def close(self) -> None:
        """Remove every hook and let go of the graph."""
        self._open = False
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        while self._undo:
            self._undo.pop()()
        self._layers.clear()
        self._begins.clear()
        self._ends.clear()


def _is_layer(module: nn.Module) -> bool:
    if isinstance(module, _LAYERS):
        return True
    if isinstance(module, nn.Embedding) or "Norm" in type(module).__name__:
        return False
    if next(module.children(), None) is not None:
        return False
    return any(p.dim() > 1 for p in module.parameters(recurse=False))


def _tensors(tree: Any) -> Iterator[Tensor]:
    """Tensors in nested containers; of a mapping with scores in it, only the scores."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        named = [k for k in tree if isinstance(k, str) and _SCORES.search(k)]
        for key, value in tree.items():
            if not named or key in named or not isinstance(value, Tensor):
                yield from _tensors(value)
    elif isinstance(tree, (list, tuple)):
        for value in tree:
            yield from _tensors(value)
