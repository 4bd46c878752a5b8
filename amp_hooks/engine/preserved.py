"""Run a model once more and leave nothing of it in the model."""

from __future__ import annotations

import random
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from . import private
from .patch import replace

# Of a module itself: hooks, and what is looked at apart. Not ``training``.
_OF_MODULE = frozenset(vars(nn.Module())) - {"training"}
# Exactly these: a config, say, is a dict with a mind of its own.
_CONTAINERS = (list, dict, set, deque, OrderedDict, defaultdict, Counter)
_DEPTH = 3  # a head's list of assigners, an assigner, its numbers

# Collectives whose result, of one process, is what it gave.
_IN_PLACE = ("all_reduce", "broadcast", "reduce", "broadcast_object_list", "barrier")
_GATHER = ("all_gather", "all_gather_object")
_INTO_TENSOR = ("all_gather_into_tensor", "reduce_scatter_tensor")
_IMPOSSIBLE = (
    "all_to_all all_to_all_single gather gather_object scatter scatter_object_list "
    "reduce_scatter send recv isend irecv batch_isend_irecv new_group"
).split()
# By which those do it that were imported by name: methods of a process group.
_OF_A_GROUP = (
    "allreduce allreduce_coalesced allgather allgather_coalesced "
    "allgather_into_tensor_coalesced alltoall alltoall_base barrier broadcast gather "
    "monitored_barrier recv recv_anysource reduce reduce_scatter scatter send "
    "reduce_scatter_tensor_coalesced _allgather_base _reduce_scatter_base"
).split()
# What anything else raises.
IMPOSSIBLE = "a collective that one process cannot do alone"


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Give everything that a forward pass writes back afterwards.

    Buffers and frozen parameters are exchanged for copies meanwhile, so that autograd,
    which may still need them, does not see them change. Attributes of the modules, and
    of the plain objects that they hold (assigners, samplers), are noted by reference
    and put back; so are the elements of lists, dicts and sets, the state of generators
    (torch's, numpy's and Python's), and values in tensors and arrays. Trained weights
    get their memory back, where it was exchanged (``w.data = normalize(w.data)``). What
    is not seen: values written into it, objects further away than that, attributes of
    classes, globals.
    """
    books = _Books()
    try:
        for module in model.modules():
            books.note_module(module)
        yield
    finally:
        for action in books.undo:
            with suppress(Exception):  # one that fails keeps none of the others
                action()


class _Books:
    """What there was before.

    Attributes:
        undo: Each puts a part of it back.
    """

    def __init__(self) -> None:
        self.undo: list[Callable[[], None]] = []
        self._seen: set[int] = set()
        self._copies: dict[int, Any] = {}  # of tensors that several modules share

    def note_module(self, module: nn.Module) -> None:
        """Its attributes; and exchange its buffers and what is frozen."""
        if id(module) in self._seen:
            return
        self._seen.add(id(module))
        self._note_attributes(vars(module), _OF_MODULE, _DEPTH)
        for kind in (private.buffers_of(module), private.parameters_of(module)):
            self.undo.append(_put_back(kind, frozenset()))
            for name, tensor in list(kind.items()):
                if tensor is None:
                    continue
                if tensor.requires_grad:
                    self.undo.append(_in_its_memory(tensor))
                    continue
                if id(tensor) not in self._copies:
                    self._copies[id(tensor)] = _copy(tensor)
                kind[name] = self._copies[id(tensor)]

    def _note_attributes(
        self, own: dict[str, Any], leave: frozenset[str], depth: int
    ) -> None:
        self.undo.append(_put_back(own, leave))
        for name, value in list(own.items()):
            if name not in leave:
                self._note(value, depth)

    def _note(self, value: Any, depth: int) -> None:
        if id(value) in self._seen or depth == 0:
            return
        if isinstance(value, nn.Module):  # one that is not registered: a hidden teacher
            for module in value.modules():
                self.note_module(module)
            return
        self._seen.add(id(value))
        if type(value) in _CONTAINERS:
            self.undo.append(_refill(value, value.copy()))
            items = value.values() if isinstance(value, dict) else value
            for item in list(items):
                self._note(item, depth)
        elif isinstance(value, Tensor):
            if not value.is_inference():  # which nobody writes to
                self.undo.append(_rewrite(value))
        elif (type(value).__module__, type(value).__name__) == ("numpy", "ndarray"):
            self.undo.append(_rewrite_array(value))
        elif (rewind := _rewind(value)) is not None:
            self.undo.append(rewind)
        elif _is_plain_object(value):
            self._note_attributes(vars(value), frozenset(), depth - 1)


def _copy(tensor: Tensor) -> Tensor:
    clone = tensor.detach().clone()
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(clone, requires_grad=False)
    return clone


def _in_its_memory(weight: Tensor) -> Callable[[], None]:
    memory = weight.data

    def put_back() -> None:
        if weight.data_ptr() != memory.data_ptr():
            weight.data = memory

    return put_back


def _put_back(own: dict[str, Any], leave: frozenset[str]) -> Callable[[], None]:
    before = {name: value for name, value in own.items() if name not in leave}

    def put_back() -> None:
        for name in set(own) - set(before) - leave:
            del own[name]
        own.update(before)

    return put_back


def _refill(container: Any, content: Any) -> Callable[[], None]:
    def refill() -> None:
        container.clear()
        add = getattr(container, "update", None) or container.extend
        add(content)

    return refill


def _rewrite(tensor: Tensor) -> Callable[[], None]:
    values = tensor.detach().clone()

    def write() -> None:
        tensor.data.copy_(values)  # autograd sees no change, as there is none

    return write


def _rewrite_array(array: Any) -> Callable[[], None]:
    values = array.copy()

    def write() -> None:
        array[...] = values

    return write


def _rewind(value: Any) -> Callable[[], None] | None:
    """What puts a generator back; ``None``: it is none."""
    if isinstance(value, random.Random):
        state: Any = value.getstate()
        return partial(value.setstate, state)
    of_numpy = type(value).__module__.startswith("numpy.random")
    if of_numpy and not hasattr(value, "get_state"):  # a Generator, or its bits
        bits = getattr(value, "bit_generator", value)
        return partial(setattr, bits, "state", bits.state)
    if of_numpy or isinstance(value, torch.Generator):
        return partial(value.set_state, value.get_state())
    return None


def _is_plain_object(value: Any) -> bool:
    """An instance of a class of Python's; one that can be called, an annealer, too."""
    return type(getattr(value, "__dict__", None)) is dict and not isinstance(
        value, (type, dict, ModuleType, FunctionType, partial)
    )


class _Done:
    """The handle of an asynchronous collective that has ended."""

    def wait(self, *args: Any) -> None:
        """Return at once."""

    def is_completed(self) -> bool:
        """Yes."""
        return True


@contextmanager
def alone() -> Iterator[None]:
    """No collective of ``torch.distributed`` waits for another process meanwhile.

    Code that asks is told that nothing is initialised; code that does not ask gets its
    own values back, of every process the same. What one process cannot do alone raises
    RuntimeError, and so does a collective that was imported by name, before. Those that
    C++ calls are not reached: of DistributedDataParallel, and functional collectives.
    """

    def impossible(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError(IMPOSSIBLE)

    def in_place(*args: Any, async_op: bool = False, **kwargs: Any) -> _Done | None:
        return _Done() if async_op else None

    def gather(
        gathered: list[Any], own: Any, *args: Any, async_op: bool = False, **kwargs: Any
    ) -> _Done | None:
        for i, slot in enumerate(gathered):
            if isinstance(slot, torch.Tensor):
                slot.copy_(own)
            else:
                gathered[i] = own
        return _Done() if async_op else None

    def into_tensor(
        out: torch.Tensor, own: torch.Tensor, *args: Any, **kwargs: Any
    ) -> _Done | None:
        copies = -(-out.numel() // own.numel())
        out.copy_(own.flatten().repeat(copies)[: out.numel()].view_as(out))
        return _Done() if kwargs.get("async_op") else None

    with ExitStack() as stack:
        distributed = torch.distributed
        stand_ins = {
            "is_initialized": lambda: False,
            **dict.fromkeys(_IN_PLACE, in_place),
            **dict.fromkeys(_GATHER, gather),
            **dict.fromkeys(_INTO_TENSOR, into_tensor),
            **dict.fromkeys(_IMPOSSIBLE, impossible),
        }
        for name, stand_in in stand_ins.items():
            if hasattr(distributed, name):  # all of them, unless torch lacks it
                replace(distributed, name, stand_in, stack)
        group: Any = getattr(distributed, "ProcessGroup", None)
        for name in set(vars(group or object)) & set(_OF_A_GROUP):
            replace(group, name, impossible, stack)
        yield
