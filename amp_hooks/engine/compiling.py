"""What torch.compile is to do with this package, and without it for a while."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from . import traceable
from .torch_api import TORCH
from .traceable import GRAPHS

_UNCOMPILED: set[str] = set()


def not_with_ours(error: BaseException) -> bool:
    """Let graphs have nothing of ours any more, if that may be why there are none.

    With ``fullgraph=True`` torch.compile raises where it cannot trace something, in
    place of leaving it out.

    Args:
        error: What a training step has ended with.

    Returns:
        Whether to try once more.
    """
    dynamo = sys.modules.get("torch._dynamo.exc")
    names = ("TorchDynamoException", "FailOnRecompileLimitHit")
    kinds = tuple(getattr(dynamo, name) for name in names if hasattr(dynamo, name))
    if not (isinstance(error, kinds) and GRAPHS.on):
        return False
    GRAPHS.on = False
    return True


def leave_uncompiled(package: str) -> None:
    """Let torch.compile, once imported, pass over a package, not over what it calls.

    Where a graph leads into ``engine.traceable`` that is traced, if this torch can pass
    over a folder but for one file; else calls of ours part the graphs.
    """
    GRAPHS.on = True
    name = "trace_rules" if TORCH >= (2, 3) else "skipfiles"
    rules = sys.modules.get(f"torch._dynamo.{name}")
    add = getattr(rules, "add", None)
    if add is None:
        return
    if package not in _UNCOMPILED:
        _UNCOMPILED.add(package)
        add(sys.modules[package])
    inlined: Callable[[], set[str]] = getattr(rules, "get_mod_inlinelist", set)
    inlined().add(traceable.__file__)  # torch keeps this set to the next process group


@contextmanager
def eager() -> Iterator[None]:
    """Run what torch.compile has compiled as it was written, and compile nothing.

    Compiled code calls no hooks that are added later.
    """
    if TORCH >= (2, 6) and "torch._dynamo" in sys.modules:
        with torch.compiler.set_stance("force_eager"):
            yield
    else:
        yield
