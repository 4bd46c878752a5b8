"""Let the ledger tell how training ended, if it was an exception."""

from __future__ import annotations

import weakref
from typing import Any

from mmengine.runner import BaseLoop, Runner

from . import private
from .patch import wrap
from .runtime import Runtime

_TELLING: weakref.WeakSet[BaseLoop] = weakref.WeakSet()  # loops that are wrapped


def tell_how_it_ends(runner: Runner) -> None:
    """Let the ledger have an ``abort`` line if an exception ends the training loop.

    No hook event comes after an exception, so the loop's ``run`` is wrapped, once.
    """
    loop = private.train_loop(runner)
    if not isinstance(loop, BaseLoop) or loop in _TELLING:
        return
    _TELLING.add(loop)

    def run(original: Any, *args: Any, **kwargs: Any) -> Any:
        runtime = Runtime.of(runner)
        runtime.aborted = False
        try:
            return original(*args, **kwargs)
        except BaseException as e:
            tell = runtime.tell_abort
            runtime.failures.call(runtime, tell, runner, e, otherwise=None)
            raise
        finally:
            _TELLING.discard(loop)
            undo()

    undo = wrap(loop, "run", run)
