"""Programs in forks of a process that has imported everything, and done nothing else.

Importing torch, MMEngine and MMDetection takes 8 seconds of a program's time: more than
most of the programs of the tests take themselves.
"""

import atexit
import contextlib
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import wait
from pathlib import Path

import torch.distributed as dist

from tests.helpers import ROOT

_PROCESSES = multiprocessing.get_context("forkserver")


def run(programs, timeout, cwd=None):
    """Run Python programs side by side to their end; all end with the first that fails.

    Args:
        programs: Of each its arguments (``[path, ...]`` or ``["-m", module, ...]``) and
            its environment.
        timeout: Seconds.
        cwd: Their folder; this process's, if it is not given.

    Returns:
        What :func:`subprocess.run` does: of several exit status 1, as torchrun's, if
        one has failed; and what all have printed.

    Raises:
        subprocess.TimeoutExpired: They did not end.
    """
    end = time.monotonic() + timeout
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        files = [folder / "stdout", folder / "stderr"]
        children = []
        for arguments, environment in programs:
            given = (list(map(str, arguments)), environment, str(cwd or os.getcwd()))
            child = _PROCESSES.Process(target=_program, args=(*given, files))
            with _importable():
                child.start()
            stack.callback(_end, child)
            children.append(child)
        running = list(children)
        while running and not any(child.exitcode for child in children):
            left = end - time.monotonic()
            if left <= 0:
                raise subprocess.TimeoutExpired(programs[0][0], timeout)
            wait([child.sentinel for child in running], left)
            running = [child for child in running if child.exitcode is None]
        for child in running:  # one that fails as well has time to say so
            child.join(3)
        running = [child for child in running if child.exitcode is None]
        status = children[0].exitcode
        if len(children) > 1:
            status = int(any(child.exitcode for child in children))
        for child in running:
            _end(child)
        texts = [file.read_text() for file in files]
        return subprocess.CompletedProcess(programs[0][0], status, *texts)


@contextlib.contextmanager
def ranks(number, environment):
    """The environment of each rank, as torchrun gives it, which keeps the store."""
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    shared = dict(
        environment,
        MASTER_ADDR="localhost",
        MASTER_PORT=str(store.port),
        WORLD_SIZE=str(number),
        LOCAL_WORLD_SIZE=str(number),
        GROUP_RANK="0",
        TORCHELASTIC_RESTART_COUNT="0",
        TORCHELASTIC_MAX_RESTARTS="0",
        TORCHELASTIC_RUN_ID=str(store.port),
        TORCHELASTIC_USE_AGENT_STORE="True",
    )
    yield [dict(shared, RANK=str(i), LOCAL_RANK=str(i)) for i in range(number)]
    del store


@contextlib.contextmanager
def _importable():
    """The process that is forked finds the tests by what is in the environment."""
    _PROCESSES.set_forkserver_preload(["tests.imported"])  # scripts have others
    before = os.environ.get("PYTHONPATH")
    os.environ.update(PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def _end(child):
    """As torchrun ends the other ranks."""
    if child.exitcode is None:
        child.terminate()
        child.join(10)
    if child.exitcode is None:
        child.kill()
        child.join()


def _program(arguments, environment, cwd, files):
    for number, file in enumerate(files, 1):
        with file.open("a") as stream:
            os.dup2(stream.fileno(), number)
    # Line by line, or what is printed is lost where a signal ends it.
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)
    multiprocessing.set_start_method(None, force=True)  # as in a fresh one
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    try:
        if arguments[0] == "-m":
            sys.argv = arguments[1:]
            sys.path.insert(0, cwd)
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = arguments
            sys.path.insert(0, os.path.dirname(os.path.abspath(arguments[0])))
            runpy.run_path(arguments[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # which multiprocessing leaves out
