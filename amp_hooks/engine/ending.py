"""Let the ledger tell how training ended, if it was an exception."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mmengine.runner import BaseLoop, Runner, find_latest_checkpoint

from . import private
from .failures import of_the_device
from .messages import warn
from .nan_variables import among_nan
from .of_others import ByIdentity, text_of
from .patch import wrap
from .runtime import Runtime
from .verdict import Verdict

_LONGEST = 2000  # characters of an exception's message in the ledger
_TELLING: ByIdentity[bool] = ByIdentity()  # loops that are wrapped


def tell_how_it_ends(runner: Runner) -> None:
    """Let the ledger have an ``abort`` line if an exception ends the training loop.

    No hook event comes after an exception, so the loop's ``run`` is wrapped, once.
    """
    loop = private.train_loop(runner)
    if not isinstance(loop, BaseLoop) or loop in _TELLING:
        return
    _TELLING[loop] = True

    def run(original: Any, *args: Any, **kwargs: Any) -> Any:
        runtime = Runtime.of(runner)
        runtime.begun = False
        try:
            return original(*args, **kwargs)
        except BaseException as e:
            # No event comes any more; what is left on the model would go on acting.
            for hook in runner.hooks:
                let_go = getattr(hook, "let_go", None)
                if let_go is not None and hook not in runtime.failures.off:
                    _bear(runtime, hook, let_go)
            # The last checkpoint has been written by now.
            _bear(runtime, runtime, tell_abort, runner, e)
            _bear(runtime, runtime, runtime.abandon)
            raise
        finally:
            _TELLING.discard(loop)
            undo()

    undo = wrap(loop, "run", run)


def _bear(
    runtime: Runtime, owner: object, what: Callable[..., object], *args: object
) -> None:
    """Whatever we raise now, on however many ranks, the exception is the user's."""
    try:
        what(*args)
    except Exception as e:
        runtime.failures.bear(owner, what.__name__, e)


def tell_abort(runner: Runner, error: BaseException) -> None:
    """A line for an exception that ends training, whoever raised it."""
    runtime = Runtime.of(runner)
    if not runtime.begun:
        return
    words = text_of(error).strip()[:_LONGEST]
    name = type(error).__name__
    about = dict(error=f"{name}: {words}" if words else name)
    if of_the_device(error):
        # The context is dead: nothing can go on with it, not even to save.
        if last := find_latest_checkpoint(runner.work_dir):
            about["checkpoint"] = last
        warn(
            f"a kernel failed on the device, in or before iteration {runner.iter}, and "
            "nothing can go on in this process. Resume in a new one, from\n"
            f"{last or 'the beginning: there is no checkpoint yet'}"
        )
    verdict = runtime.verdict
    if not verdict.is_bad and among_nan(error):
        verdict = Verdict.RAISED
    runtime.emit("abort", runner.iter, verdict, **about)
