"""Runs in processes of their own."""

from __future__ import annotations

import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

# Each is a fork of one process that has imported everything, and done nothing.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["rescue_run"])


def one_thread_each() -> None:
    """For the runs, and for the process they are forks of."""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))


def run_apart(function: Callable[..., None], *args: Any, result: Path) -> None:
    """Call a function in a process of its own; what it prints goes to a log.

    Args:
        function: Writes ``result``.
        args: Its arguments.
        result: The log is beside it.

    Raises:
        RuntimeError: It ended without a result.
    """
    log = result.with_suffix(".log")
    process = _PROCESSES.Process(target=_quietly, args=(function, args, log))
    process.start()
    process.join()
    if not result.exists():
        raise RuntimeError(f"{result.stem} left no result; see {log}")


def _quietly(function: Callable[..., None], args: tuple[Any, ...], log: Path) -> None:
    with log.open("w") as stream:
        for number in (1, 2):
            os.dup2(stream.fileno(), number)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    function(*args)
