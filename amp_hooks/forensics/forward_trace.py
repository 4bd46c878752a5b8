"""Where in a forward pass the first value arises that is not finite."""

from __future__ import annotations

from collections import Counter, deque
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Callable, Iterator, Tuple

from torch import Tensor, nn

from ..engine.tensors import named_tensors
from ..monitor.logits import infinity_is_overflow
from .first_operation import FirstOperation, Operation
from .magnitude import Magnitude, magnitudes

# Named tensors of what a model is called with, whatever its classes.
Walk = Callable[[Any], Iterator[Tuple[str, Tensor]]]

FRAMES = 21  # module calls that are shown, as by DebugUnderflowOverflow


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
class Origin:
    """Where values stop being finite.

    Attributes:
        kind: ``'input'`` (what the model was given), ``'weights'`` (the module's own
            parameters or buffers), ``'overflow'`` (the output has an infinity),
            ``'nan'`` (it has NaN only), ``'code'`` (between the modules, in the
            module's own code) or ``'loss'`` (of a loss term, after all modules).
        module: Path of the innermost module; '' is the model itself.
        tensors: Names of what is not finite.
        frame: The call that it showed in; of kind ``'code'`` that of the consumer.
        consumer: Of kind ``'code'``: the module that was given such values.
        operation: The first such operation in it, if it was seen.
    """

    kind: str
    module: str
    tensors: list[str]
    frame: Frame | None = None
    consumer: str = ""
    operation: Operation | None = None


@dataclass
class _Open:
    """A call that has begun."""

    module: nn.Module
    path: str
    call: int
    own: list[Magnitude]  # its weights and buffers, before it
    inputs: list[Magnitude]
    operations: int  # seen before it


class ForwardTrace:
    """Watches every module of a model while it is entered, until one is not finite.

    The idea and the 21 frames are of Hugging Face's ``DebugUnderflowOverflow``
    (transformers, ``debug_utils.py``), and of fairseq's ``NanDetector``, which runs the
    bad batch again. Beyond theirs: inputs are measured before the call, so that
    in-place operations do not hide them; what arises between modules is not blamed on
    the next one; -inf that masks positions is told from overflow; and the operation is
    named. Each tensor costs a wait for the device: it is for a batch that is run again.

    Args:
        model: Is not changed.
        frames: So many last calls are kept.
        walk: Names the tensors in inputs and outputs, whatever their classes.

    Attributes:
        frames: The last calls up to the incident, in the order in which they ended.
        origin: The first value that is not finite.
    """

    def __init__(self, model: nn.Module, frames: int, walk: Walk) -> None:
        self.frames: deque[Frame] = deque(maxlen=frames)
        self.origin: Origin | None = None
        self._walk = walk
        self._calls: Counter[str] = Counter()
        self._stack: list[_Open] = []
        # An output with -inf, maybe on purpose; and the operations seen until then.
        self._masked: tuple[Origin, int] | None = None
        self._names = {module: name for name, module in model.named_modules()}
        self._modules = {name: module for module, name in self._names.items()}
        self._operations = FirstOperation(self._names)
        self._undo = ExitStack()

    def __enter__(self) -> ForwardTrace:
        with ExitStack() as stack:
            for module in self._names:
                # The last to see inputs and outputs: as the next module gets them.
                enter, leave = self._enter, self._leave
                handle = module.register_forward_pre_hook(enter, with_kwargs=True)
                stack.callback(handle.remove)
                stack.callback(module.register_forward_hook(leave).remove)
            stack.enter_context(self._operations)
            self._undo = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._undo.close()

    def last_operation(self) -> Operation | None:
        """The last operation that made finite values non-finite."""
        return self._operations.seen[-1] if self._operations.seen else None

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self.origin is not None:
            return
        path = self._names[module]
        self._calls[path] += 1
        with self._operations.pause():
            # Before the call: it may write to its buffers, and to its inputs.
            own = magnitudes([*module.named_parameters(recurse=False)])
            own += magnitudes([*module.named_buffers(recurse=False)])
            inputs = magnitudes(_named(self._walk, args, kwargs))
        bad = [row for row in inputs if not row.finite]
        call = _Open(module, path, self._calls[path], own, inputs, self._seen)
        if not self._stack:
            # What stands in the data samples may be meant so: a missing target.
            plain = dict(_named(named_tensors, args, kwargs))
            bad = [row for row in bad if row.name in plain]
            if bad:
                self._end(self._origin("input", call, bad), call, [])
        elif not all(row.only_masked for row in bad):
            self._end(self._mask_or_code(call, bad), call, [])
        self._stack.append(call)

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if self.origin is not None or not self._stack:
            return
        call = self._stack.pop()
        while call.module is not module and self._stack:  # one that raised, and was
            call = self._stack.pop()  # caught
        with self._operations.pause():
            outputs = magnitudes(self._walk({"output": output}))
        bad = [row for row in outputs if not row.finite]
        if not bad:
            self._add_frame(call, outputs)
            return
        masked = [row for row in call.inputs if not row.finite]  # -inf only
        spoiled = [row for row in call.own if not row.finite]
        kind = "overflow" if any(row.inf or row.neg_inf for row in bad) else "nan"
        found = self._origin("weights" if spoiled else kind, call, spoiled or bad)
        if infinity_is_overflow(module) or not all(row.only_masked for row in bad):
            if masked and not spoiled:
                found = self._mask_or_code(call, masked)
            self._end(found, call, outputs)
            return
        frame = self._add_frame(call, outputs)
        if not masked and self._masked is None:
            self._masked = replace(found, frame=frame), self._seen

    @property
    def _seen(self) -> int:
        return len(self._operations.seen)

    def _origin(self, kind: str, call: _Open, bad: list[Magnitude]) -> Origin:
        within = self._operations.seen[call.operations :]
        own = (o for o in within if o.module == call.path)
        names = [row.name for row in bad]
        return Origin(kind, call.path, names, operation=next(own, None))

    def _mask_or_code(self, call: _Open, bad: list[Magnitude]) -> Origin:
        """``call`` was given what is not finite, and no module has shown it."""
        if self._masked is not None and self._masked[1] == self._seen:
            return self._masked[0]  # nothing else has made such values since
        operation = self.last_operation()
        names = [row.name for row in bad]
        owner = self._owner(call.path) if operation is None else operation.module
        return Origin("code", owner, names, None, call.path, operation)

    def _owner(self, consumer: str) -> str:
        """In whose code a module was called, as far as paths tell."""
        around = self._stack[-1].path if self._stack else ""
        owner = consumer.rpartition(".")[0]
        # A list of modules has no code.
        while owner and _has_no_code(self._modules[owner]):
            owner = owner.rpartition(".")[0]
        # A head's loss method is no module call; its path tells more.
        within = not around or owner == around or owner.startswith(around + ".")
        return owner if within else around

    def _end(self, origin: Origin, call: _Open, outputs: list[Magnitude]) -> None:
        frame = self._add_frame(call, outputs)
        self.origin = origin if origin.frame else replace(origin, frame=frame)
        self._operations.off = True

    def _add_frame(self, call: _Open, outputs: list[Magnitude]) -> Frame:
        kind = type(call.module).__name__
        frame = Frame(call.path, kind, call.call, call.own + call.inputs + outputs)
        self.frames.append(frame)
        return frame


def _named(walk: Walk, args: Any, kwargs: Any) -> Iterator[tuple[str, Tensor]]:
    yield from walk({"input": list(args)})
    yield from walk({"input": kwargs})


def _has_no_code(module: nn.Module) -> bool:
    return type(module).forward is nn.Module.forward
