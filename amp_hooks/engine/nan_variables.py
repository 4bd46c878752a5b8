"""Whether an exception was raised among variables that hold NaN."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from ..errors import OnPurpose
from .failures import of_another_rank, of_the_device
from .of_others import text_of
from .out_of_memory import is_out_of_memory

# What code raises at values that it cannot do with; not what a slip in it raises.
_OF_VALUES = (RuntimeError, ValueError, LookupError, ArithmeticError, AssertionError)
_NOT = (NotImplementedError, RecursionError, OnPurpose)
_LACKS = "not implemented for"  # an operator a dtype
_DEPTH = 4  # variables, and lists in lists in them
_MOST = 100  # values that are looked at in each


def among_nan(error: BaseException) -> bool:
    """Whether NaN has caused an exception, for its functions had it in their variables.

    What is raised of NaN says so in as many words as there are libraries:
    ``one_hot`` says "Class values must be non-negative", indexing "index
    -9223372036854775808 is out of bounds". NaN shows where it came through: in the
    tensors, arrays and numbers of the functions in the traceback. Infinities do not:
    masks and cost matrices have them by design. Waits for the device.

    A program's own errors have other causes (an attribute that is missing, a full
    memory, another rank), whatever is in the variables, and so has Ctrl-C; not
    ``sys.exit(1)``, with which DETR ends at a loss that is NaN.

    Args:
        error: As caught.
    """
    of_values = isinstance(error, _OF_VALUES) or type(error) is Exception
    of_values |= isinstance(error, SystemExit) and error.code not in (None, 0)
    if not of_values or isinstance(error, _NOT) or _LACKS in text_of(error):
        return False
    if is_out_of_memory(error) or of_the_device(error) or of_another_rank(error):
        return False
    traceback = error.__traceback__
    while traceback is not None:
        variables = list(traceback.tb_frame.f_locals.values())
        if any(map(_is_nan, _values(variables, _DEPTH))):
            return True
        traceback = traceback.tb_next
    return False


def _values(tree: Any, depth: int) -> Iterator[Any]:
    if type(tree) is dict:
        tree = list(tree.values())
    if type(tree) not in (list, tuple):
        yield tree
    elif depth:
        for value in tree[:_MOST]:
            yield from _values(value, depth - 1)


def _is_nan(value: Any) -> bool:
    try:
        if isinstance(value, torch.Tensor):
            numbers = value.is_floating_point() or value.is_complex()
            return numbers and bool(value.detach().isnan().any())
        if isinstance(value, np.ndarray):
            return value.dtype.kind in "fc" and bool(np.isnan(value).any())
        return isinstance(value, float) and math.isnan(value)
    except Exception:  # a tensor without data or of a kind of its own
        return False
