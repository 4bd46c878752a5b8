"""The random number generators of this process."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Tuple

import mmengine.dist as dist
import numpy as np
import torch

from .messages import warn

# Of Python, numpy, torch and CUDA, as each gives its own.
States = Tuple[Any, Any, torch.Tensor, "torch.Tensor | None"]


def capture_rng() -> States:
    """State of Python's, numpy's and torch's generators; takes some 0.1 ms.

    Of CUDA that of the current device; it is kept on the host, so nothing waits.
    """
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
    # numpy's global generator, which is what pipelines and models use.
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda  # noqa: NPY002


def restore_rng(states: States) -> None:
    """Take back what :func:`capture_rng` gave."""
    python, numpy, cpu, cuda = states
    random.setstate(python)
    np.random.set_state(numpy)  # noqa: NPY002
    torch.set_rng_state(cpu)
    if cuda is not None:
        torch.cuda.set_rng_state(cuda)


@contextmanager
def undisturbed_rng() -> Iterator[None]:
    """Whatever draws random numbers meanwhile, the generators go on as before."""
    states = capture_rng()
    try:
        yield
    finally:
        restore_rng(states)


def rng_state(states: States | None = None) -> dict[str, Any]:
    """The generators' state (or ``states``), fit for a checkpoint.

    Only what ``torch.load(weights_only=True)`` reads: tensors, numbers, strings, lists.
    """
    (version, words, gauss), numpy, cpu, cuda = states or capture_rng()
    name, keys, *rest = numpy
    state = dict(
        python=[version, list(words), gauss],
        numpy=[name, torch.from_numpy(np.asarray(keys, np.int64)), *rest],
        torch=cpu,
    )
    return state if cuda is None else dict(state, cuda=cuda)


def set_rng_state(state: dict[str, Any]) -> None:
    """Take back what :func:`rng_state` gave.

    Raises:
        KeyError, TypeError, ValueError, RuntimeError: It is of another kind.
    """
    version, words, gauss = state["python"]
    name, keys, *rest = state["numpy"]
    cuda = state["cuda"].cpu() if "cuda" in state else None
    restore_rng(
        (
            (version, tuple(words), gauss),
            (name, keys.cpu().numpy().astype(np.uint32), *rest),
            state["torch"].cpu(),
            cuda if torch.cuda.is_available() else None,
        )
    )


def set_rng_of_rank(saved: list[dict[str, Any]]) -> None:
    """Set this process's generators to what a checkpoint has of its rank.

    Nothing happens if it is of another number of processes. One that cannot be taken
    back costs a warning.

    Args:
        saved: :func:`rng_state` of each rank.
    """
    if len(saved) != dist.get_world_size():
        return
    try:
        set_rng_state(saved[dist.get_rank()])
    except (KeyError, TypeError, ValueError, RuntimeError) as e:
        warn(f"random number generators start anew, not from the checkpoint: {e!r}")
