"""Run a model once more and leave nothing of it in the model."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from . import private
from .patch import replace

# Of a module itself: hooks, and what is looked at apart. Not ``training``.
_OF_MODULE = frozenset(vars(nn.Module())) - {"training"}
# Exactly these: a config, say, is a dict with a mind of its own.
_CONTAINERS = (list, dict, set, deque)
_DEPTH = 3  # a head's list of assigners, an assigner, its numbers

# Collectives whose result, of one process, is what it gave.
_IN_PLACE = ("all_reduce", "broadcast", "reduce", "broadcast_object_list", "barrier")
_GATHER = ("all_gather", "all_gather_object")
_INTO_TENSOR = ("all_gather_into_tensor", "reduce_scatter_tensor")
_IMPOSSIBLE = (
    "all_to_all all_to_all_single gather gather_object scatter scatter_object_list "
    "reduce_scatter send recv isend irecv batch_isend_irecv new_group"
).split()
# What anything else raises.
IMPOSSIBLE = "a collective that one process cannot do alone"


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Give everything that a forward pass writes back afterwards.

    Buffers and frozen parameters are exchanged for copies meanwhile, so that autograd,
    which may still need them, does not see them change. Attributes of the modules, and
    of the plain objects that they hold (assigners, samplers), are noted by reference
    and put back; so are the elements of lists, dicts and sets, and the state of
    generators, tensors and arrays. What is not seen: objects further away than that.
    """
    undo: list[Callable[[], None]] = []
    seen: set[int] = set()
    copies: dict[int, Any] = {}
    for module in model.modules():
        _note_attributes(vars(module), _OF_MODULE, undo, seen, _DEPTH)
        for kind in (private.buffers_of(module), private.parameters_of(module)):
            frozen: dict[str, Any] = {
                name: t
                for name, t in kind.items()
                if t is not None and not t.requires_grad
            }
            undo.append(_put_back(kind, frozen))
            for name, tensor in frozen.items():
                if id(tensor) not in copies:
                    copies[id(tensor)] = _copy(tensor)
                kind[name] = copies[id(tensor)]
    try:
        yield
    finally:
        for action in undo:
            with suppress(Exception):  # one that fails keeps none of the others
                action()


def _copy(tensor: Tensor) -> Tensor:
    clone = tensor.detach().clone()
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(clone, requires_grad=False)
    return clone


def _put_back(kind: dict[str, Any], tensors: dict[str, Any]) -> Callable[[], None]:
    before = dict(kind)

    def put_back() -> None:
        for name in set(kind) - set(before):
            del kind[name]
        kind.update({n: t for n, t in before.items() if n in tensors or t is None})

    return put_back


def _note_attributes(
    own: dict[str, Any],
    leave: frozenset[str],
    undo: list[Callable[[], None]],
    seen: set[int],
    depth: int,
) -> None:
    noted = {name: value for name, value in own.items() if name not in leave}

    def put_back() -> None:
        for name in set(own) - set(noted) - leave:
            del own[name]
        own.update(noted)

    undo.append(put_back)
    for value in noted.values():
        _note(value, undo, seen, depth)


def _note(
    value: Any, undo: list[Callable[[], None]], seen: set[int], depth: int
) -> None:
    if id(value) in seen or depth == 0:
        return
    if type(value) in _CONTAINERS:
        seen.add(id(value))
        content = value.copy()

        def refill() -> None:
            value.clear()
            add = getattr(value, "update", None) or value.extend
            add(content)

        undo.append(refill)
        items = content.values() if type(value) is dict else content
        for item in list(items):
            _note(item, undo, seen, depth)
    elif isinstance(value, torch.Generator):
        state = value.get_state()

        def rewind() -> None:
            value.set_state(state)

        undo.append(rewind)
    elif isinstance(value, Tensor):
        seen.add(id(value))
        if not value.is_inference():  # which nobody writes to
            undo.append(_rewrite(value))
    elif (type(value).__module__, type(value).__name__) == ("numpy", "ndarray"):
        seen.add(id(value))
        undo.append(_rewrite_array(value))
    elif _is_plain_object(value):
        seen.add(id(value))
        _note_attributes(vars(value), frozenset(), undo, seen, depth - 1)


def _rewrite(tensor: Tensor) -> Callable[[], None]:
    """What puts its values back, if it has been written to."""
    data, version = tensor.detach(), private.version_of(tensor)
    values = data.clone()

    def write() -> None:
        if private.version_of(data) != version:
            data.copy_(values)

    return write


def _rewrite_array(array: Any) -> Callable[[], None]:
    values = array.copy()

    def write() -> None:
        array[...] = values

    return write


def _is_plain_object(value: Any) -> bool:
    """An instance of a class of Python's, and neither a tensor nor a module."""
    return (
        type(getattr(value, "__dict__", None)) is dict
        and not isinstance(value, (Tensor, nn.Module, type, dict, ModuleType))
        and not callable(value)
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
    RuntimeError. A collective imported by name, before, is not reached.
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
        yield
