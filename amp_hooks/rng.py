"""The random number generators of this process."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def rng_state() -> dict[str, Any]:
    """State of Python's, numpy's and torch's generators, fit for a checkpoint.

    Only what ``torch.load(weights_only=True)`` reads: tensors, numbers, strings, lists.
    """
    version, words, gauss = random.getstate()
    name, keys, *rest = np.random.get_state()  # noqa: NPY002
    state = dict(
        python=[version, list(words), gauss],
        numpy=[name, torch.from_numpy(np.asarray(keys, np.int64)), *rest],
        torch=torch.get_rng_state(),
    )
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Take back what :func:`rng_state` gave.

    Raises:
        KeyError, TypeError, ValueError, RuntimeError: It is of another kind.
    """
    version, words, gauss = state["python"]
    name, keys, *rest = state["numpy"]
    random.setstate((version, tuple(words), gauss))
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
