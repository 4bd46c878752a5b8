"""Programs in processes of their own, called as a user calls them."""

import os
import subprocess
import sys

from tests import forks
from tests.helpers import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
from mmdet_tool import find

TWO_RANKS = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
# A free port; `--standalone` of torch 2.0 has one for all.
TWO_RANKS += ["--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0"]


def environment(**more):
    """Of this process, with this checkout first, and one thread each."""
    return dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1", **more)


def run(*command, status=0, timeout=600, text=True, cwd=None, **env):
    """Run a command to its end.

    Args:
        command: Program and arguments; all but strings are converted.
        status: The exit status that it must have; ``None`` for any.
        timeout: Seconds.
        text: Decode what it prints.
        cwd: The folder to run it in; this process's, if it is not given.
        env: Added to the environment.
    """
    done = subprocess.run(
        list(map(str, command)),
        env=environment(**env),
        cwd=cwd,
        capture_output=True,
        text=text,
        timeout=timeout,
        check=False,
    )
    return _with_status(done, status)


def two_ranks(*arguments, status=0, timeout=600, cwd=None, **env):
    """Run a program (or ``-m`` and a module) on two ranks; options as of :func:`run`.

    As torchrun does, but in forks. What torchrun itself does is another matter.
    """
    with forks.ranks(2, environment(**env)) as environments:
        programs = [(arguments, of_rank) for of_rank in environments]
        return _with_status(forks.run(programs, timeout, cwd), status)


def _with_status(done, status):
    if status is not None and done.returncode != status:
        printed = f"{done.stdout[-3000:]}\n{done.stderr[-4000:]}"
        raise AssertionError(f"exit status {done.returncode}, not {status}\n{printed}")
    return done


def python(*arguments, **options):
    """Run Python with these arguments; options as of :func:`run`."""
    return run(sys.executable, *arguments, **options)


def fork(*arguments, status=0, timeout=600, cwd=None, **env):
    """Run a program (or ``-m`` and a module) that need not import everything anew.

    Options as of :func:`run`.
    """
    done = forks.run([(arguments, environment(**env))], timeout, cwd)
    return _with_status(done, status)


def script(name, *arguments, **options):
    """Run a script of the project; options as of :func:`run`."""
    return fork(ROOT / "scripts" / name, *arguments, **options)


def train(config, *arguments):
    """The command that trains with MMDetection's own tools/train.py."""
    return [sys.executable, find("train.py"), config, *arguments]


def code(text, **options):
    """Run a few lines in a fresh interpreter, without its warnings."""
    return python("-W", "ignore", "-c", text, **options)


def start(*command, stderr=subprocess.DEVNULL):
    """Begin a command that will be killed; what it prints goes nowhere."""
    return subprocess.Popen(
        list(map(str, command)),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        text=True,
    )
