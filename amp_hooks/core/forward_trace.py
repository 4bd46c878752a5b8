"""Where in a forward pass the first value arises that is not finite."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .first_operation import FirstOperation, Operation
from .logits import infinity_is_overflow
from .magnitude import Magnitude, magnitude, magnitudes

# Named tensors of what a model is called with, whatever its classes.
Walk = Callable[[Any], Iterator[tuple[str, Tensor]]]


@dataclass(frozen=True)
class Frame:
    """One call of a module, as measured.

    Attributes:
        module: Its path in the model; '' is the model itself.
        kind: Its class.
        call: Which call of it in this forward pass, from 1.
        rows: Weights and buffers of its own, inputs, outputs.
    """

    module: str
    kind: str
    call: int
    rows: list[Magnitude]


@dataclass(frozen=True)
class Fault:
    """Where values stop being finite.

    Attributes:
        kind: ``'input'`` (what the model was given), ``'weights'`` (the module's own
            parameters or buffers), ``'overflow'`` (the output has an infinity),
            ``'nan'`` (it has NaN only) or ``'code'`` (between the modules, in the
            module's own code).
        module: Path of the innermost module; '' is the model itself.
        call: Which call of it.
        tensors: Names of what is not finite.
        consumer: Of kind ``'code'``: the module that was given such values.
        operation: The first such operation in it, if it was seen.
    """

    kind: str
    module: str
    call: int
    tensors: list[str]
    consumer: str = ""
    operation: Operation | None = None


@dataclass
class _Open:
    """A call that has begun."""

    module: str
    inputs: list[Magnitude]
    operations: int  # seen before it


class ForwardTrace:
    """Watches every module of a model while it is entered, up to the first fault.

    The idea and the 21 frames are of Hugging Face's ``DebugUnderflowOverflow``
    (transformers, ``debug_utils.py``), and of fairseq's ``NanDetector``, which runs the
    batch of a fault again. Beyond theirs: inputs are measured before the call, so that
    in-place operations do not hide them; what arises between modules is not blamed on
    the next one; -inf that masks positions is told from overflow; and the operation is
    named. Each tensor costs a wait for the device: it is for a batch that is run again.

    Args:
        model: Is not changed.
        frames: So many last calls are kept.
        walk: Names the tensors in what the model itself is called with.

    Attributes:
        frames: The last calls up to the fault, in the order in which they ended.
        fault: The first fault.
    """

    def __init__(self, model: nn.Module, frames: int, walk: Walk) -> None:
        self.frames: deque[Frame] = deque(maxlen=frames)
        self.fault: Fault | None = None
        self._walk = walk
        self._calls: Counter[str] = Counter()
        self._stack: list[_Open] = []
        self._masked: Fault | None = None  # outputs with -inf, maybe on purpose
        self._operations = FirstOperation(self._inside)
        self._names = {module: name for name, module in model.named_modules()}
        self._handles: list[Any] = []

    def __enter__(self) -> ForwardTrace:
        for module in self._names:
            self._handles += [
                # The last to see inputs and outputs: as the next module gets them.
                module.register_forward_pre_hook(self._enter, with_kwargs=True),
                module.register_forward_hook(self._leave),
            ]
        self._operations.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        self._operations.__exit__(*error)  # type: ignore[no-untyped-call]
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def last_operation(self) -> Operation | None:
        """The last operation that made finite values non-finite."""
        return self._operations.seen[-1] if self._operations.seen else None

    def _inside(self) -> str:
        return self._stack[-1].module if self._stack else ""

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self.fault is not None:
            return
        name = self._names[module]
        self._calls[name] += 1
        with self._operations.off():
            if not self._stack:  # the model itself
                inputs = [
                    magnitude(label, tensor)
                    for given in (kwargs, dict(enumerate(args)))
                    for label, tensor in self._walk(given)
                    if tensor.is_floating_point()
                ]
            else:
                inputs = magnitudes(args, "input") + magnitudes(kwargs, "input")
        bad = [row for row in inputs if not row.finite]
        names = [row.name for row in bad]
        if bad and not self._stack:
            self.fault = Fault("input", name, 1, names)
        elif not all(row.only_masked for row in bad):
            self.fault = self._masked or self._in_code(name, names)
        if self.fault is not None:
            self._add_frame(module, name, inputs)
            return
        seen = len(self._operations.seen)
        self._stack.append(_Open(name, inputs, seen))

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if self.fault is not None:
            return
        call = self._stack.pop()
        with self._operations.off():
            outputs = magnitudes(output, "output")
            own: dict[str, Tensor] = dict(module.named_parameters(recurse=False))
            own |= module.named_buffers(recurse=False)
            weights = magnitudes(own, "")
        self._add_frame(module, call.module, weights + call.inputs + outputs)
        bad = [row for row in outputs if not row.finite]
        if not bad:
            return
        spoiled = [row.name for row in weights if not row.finite]
        given = [row.name for row in call.inputs if not row.finite]  # -inf only
        kind = "overflow" if any(row.inf or row.neg_inf for row in bad) else "nan"
        operations = self._operations.seen[call.operations :]
        first = (o for o in operations if o.module == call.module)
        found = Fault(
            "weights" if spoiled else kind,
            call.module,
            self._calls[call.module],
            spoiled or [row.name for row in bad],
            operation=next(first, None),
        )
        if infinity_is_overflow(module) or not all(row.only_masked for row in bad):
            if given and not spoiled:
                found = self._masked or self._in_code(call.module, given)
            self.fault = found
        elif not given and self._masked is None:
            self._masked = found

    def _in_code(self, consumer: str, tensors: list[str]) -> Fault:
        """Every module's output was finite, and yet ``consumer`` got what is not."""
        around = self._inside()
        owner = consumer.rpartition(".")[0]
        # A head's loss method is no module call; its path tells more.
        if around and owner != around and not owner.startswith(around + "."):
            owner = around
        return Fault(
            "code",
            owner,
            max(self._calls[owner], 1),
            tensors,
            consumer,
            self.last_operation(),
        )

    def _add_frame(self, module: nn.Module, name: str, rows: list[Magnitude]) -> None:
        kind = type(module).__name__
        self.frames.append(Frame(name, kind, self._calls[name], rows))
