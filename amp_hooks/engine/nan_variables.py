"""Whether an exception was raised among activations that hold NaN."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from types import TracebackType
from typing import Any

import torch

from ..errors import OnPurpose
from .exit_status import is_failure
from .failures import of_another_rank, of_the_device
from .of_others import text_of
from .out_of_memory import is_out_of_memory

# What code raises at values that it cannot do with; not what a slip in it raises.
_OF_VALUES = (RuntimeError, ValueError, IndexError, ArithmeticError, AssertionError)
_NOT = (NotImplementedError, RecursionError, OnPurpose)
# An operator lacks a dtype, a value is of another kind, another rank is gone.
_OTHER = re.compile(
    r"not implemented for|values to unpack|gloo|nccl|connection|broken pipe", re.I
)
_STEP = "train_step"
_DEPTH = 4  # variables, and lists in lists in them
_MOST = 300  # tensors that are looked at


def among_nan(error: BaseException) -> bool:
    """Whether NaN has caused an exception of a training step.

    What is raised of NaN says so in as many words as there are libraries:
    ``one_hot`` says "Class values must be non-negative", indexing "index
    -9223372036854775808 is out of bounds". NaN shows where it came through: in the
    variables of the functions between ``train_step`` and the one that raised. Only
    tensors that require gradients count, activations and losses: labels may hold NaN
    for what is not known. Infinities do not: masks and costs have them by design.
    Waits for the device.

    A program's own errors have other causes (an attribute that is missing, a full
    memory, another rank), whatever is in the variables, and so has Ctrl-C; not
    ``sys.exit(1)``, with which DETR ends at a loss that is NaN.

    Args:
        error: As caught.
    """
    if isinstance(error, SystemExit):
        may_be = is_failure(error.code)
    else:
        may_be = isinstance(error, _OF_VALUES) or type(error) is Exception
    if not may_be or isinstance(error, _NOT) or _OTHER.search(text_of(error)):
        return False
    if is_out_of_memory(error) or of_the_device(error) or of_another_rank(error):
        return False
    tensors = _once(_activations(error.__traceback__))
    return any(map(_has_nan, islice(tensors, _MOST)))


def _activations(traceback: TracebackType | None) -> Iterator[torch.Tensor]:
    """Tensors with gradients in the functions that a training step called."""
    within = False
    while traceback is not None:
        frame = traceback.tb_frame
        if within:
            yield from _tensors(list(frame.f_locals.values()), _DEPTH)
        # Not its own variables: what has caught the exception runs on, and Python
        # keeps a copy of them, the exception among them, which then is never freed.
        within = within or frame.f_code.co_name == _STEP
        traceback = traceback.tb_next


def _tensors(tree: Any, depth: int) -> Iterator[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        if tree.requires_grad:
            yield tree
    elif depth and isinstance(tree, (dict, list, tuple)):
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from _tensors(value, depth - 1)


def _once(tensors: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
    seen: set[int] = set()
    for tensor in tensors:
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield tensor


def _has_nan(tensor: torch.Tensor) -> bool:
    try:
        return bool(tensor.detach().isnan().any())
    except Exception:  # without data, or of a kind of its own
        return False
