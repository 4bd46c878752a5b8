"""An out-of-memory error that a change of ours has caused takes that change back."""

from __future__ import annotations

import re
from collections.abc import Callable

import mmengine.dist as dist
import torch

from .error_tap import Raised
from .of_others import first_line, text_of
from .runtime import Runtime

# CUDA's allocator has a class of its own; that of the CPU has not.
_MESSAGE = re.compile("out of memory|not enough memory|can't allocate memory", re.I)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on a device or on the host."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and bool(_MESSAGE.search(text_of(error)))


def taken_back(
    runtime: Runtime, give_up: Callable[[str], bool], error: Exception
) -> Raised | None:
    """Deal with an exception of a training step by taking a change back.

    With several processes it is left alone: the others wait for this one's gradients.

    Args:
        runtime: Of the runner.
        give_up: Called as ``give_up(text)`` if memory ran out; whether there was a
            change that it has taken back.
        error: What the step has raised.

    Returns:
        It, if training goes on; else None.
    """
    if not is_out_of_memory(error) or dist.get_world_size() > 1:
        return None
    if runtime.tap.stepping:  # some of the weights have changed
        return None
    text = f"{type(error).__name__}: {first_line(error)}"
    if not give_up(text):
        return None
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()  # blocks of the sizes that did not fit
    return Raised(text, [], ours=True)
