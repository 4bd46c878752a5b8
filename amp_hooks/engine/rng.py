"""The random number generators of this process."""

from __future__ import annotations

import ctypes
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Tuple

import mmengine.dist as dist
import numpy as np
import torch

from .messages import warn

# Of Python, numpy, torch and CUDA, as each gives its own.
States = Tuple[Any, Any, torch.Tensor, "torch.Tensor | None"]


_WORDS = 624  # of the Mersenne Twister, and its place in them: 4 bytes each


class _NumpysGenerator:
    """numpy's global generator, which is what pipelines and models use.

    To ask it for its state takes longer than all the others together, so that is done
    only where its memory shows that somebody has drawn from it.
    """

    def __init__(self) -> None:
        self._state: Any = None
        self._memory = b""
        self._paired = False  # there, half of a pair has been waiting

    def state(self) -> Any:
        """As ``numpy.random.get_state`` gives it; not to be written to."""
        if not hasattr(np.random, "get_bit_generator"):  # since numpy 1.24
            return np.random.get_state()  # noqa: NPY002
        generator = np.random.get_bit_generator()
        if not isinstance(generator, np.random.MT19937):
            return np.random.get_state(legacy=False)  # noqa: NPY002
        memory = ctypes.string_at(generator.ctypes.state_address, 4 * (_WORDS + 1))
        # Of two normal numbers that were drawn together the second leaves no trace in
        # this memory when it is used, nor when it is given back.
        moved = memory != self._memory
        if moved or self._paired:
            self._state = np.random.get_state()  # noqa: NPY002
            self._paired = bool(self._state[3]) or (self._paired and not moved)
            _, words, place, *_ = self._state
            known = words.tobytes() + int(place).to_bytes(4, sys.byteorder)
            self._memory = memory if memory == known else b""
        return self._state

    def forget(self) -> None:
        """Ask anew, for somebody has set the state."""
        self._memory = b""


_NUMPYS = _NumpysGenerator()


def capture_rng() -> States:
    """State of Python's, numpy's and torch's generators; takes some 0.02 ms.

    Of CUDA that of the current device; it is kept on the host, so nothing waits.
    """
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
    return random.getstate(), _NUMPYS.state(), torch.get_rng_state(), cuda


def restore_rng(states: States) -> None:
    """Take back what :func:`capture_rng` gave."""
    python, numpy, cpu, cuda = states
    random.setstate(python)
    if numpy is not None:
        np.random.set_state(numpy)  # noqa: NPY002
        _NUMPYS.forget()
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
    state = dict(python=[version, list(words), gauss], torch=cpu)
    if isinstance(numpy, tuple):  # else of another kind of generator: not kept
        name, keys, *rest = numpy
        keys = torch.from_numpy(np.asarray(keys, np.int64))
        state["numpy"] = [name, keys, *rest]
    return state if cuda is None else dict(state, cuda=cuda)


def rng_of_all_ranks() -> list[dict[str, Any]]:
    """That of each; a collective."""
    state = rng_state()
    return [state] if dist.get_world_size() == 1 else dist.all_gather_object(state)


def set_rng_state(state: dict[str, Any]) -> None:
    """Take back what :func:`rng_state` gave.

    Raises:
        KeyError, TypeError, ValueError, RuntimeError: It is of another kind.
    """
    version, words, gauss = state["python"]
    numpy = None
    if "numpy" in state:
        name, keys, *rest = state["numpy"]
        numpy = (name, keys.cpu().numpy().astype(np.uint32), *rest)
    cuda = state["cuda"].cpu() if "cuda" in state else None
    restore_rng(
        (
            (version, tuple(words), gauss),
            numpy,
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
