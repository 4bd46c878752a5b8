"""What all hooks of the suite have in common."""

from __future__ import annotations

import weakref
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import BaseLoop, Runner

from . import private
from .checks import check_known_arguments, match_names
from .messages import warn
from .recorder import IterationRecord
from .run import bare_model
from .runtime import Runtime
from .safe_load import allow_mmengine_checkpoints

CHECKPOINT_KEY = "amp_hooks"

_TELLING: weakref.WeakSet[BaseLoop] = weakref.WeakSet()  # loops that are wrapped


def check_targets(hook: AmpHook, targets: list[str], runner: Runner) -> None:
    """Refuse a pattern that matches no module; to be called in ``before_run``.

    There the model is complete and no checkpoint has been read yet, so that a wrong
    pattern fails within seconds.
    """
    names = [name for name, _ in bare_model(runner).named_modules() if name]
    match_names(type(hook).__name__, "targets", targets, names)


def tell_how_it_ends(runner: Runner) -> None:
    """Let the ledger have an ``abort`` line if an exception ends the training loop.

    No hook event comes after an exception, so the loop's ``run`` is wrapped, once.
    """
    loop = private.train_loop(runner)
    if not isinstance(loop, BaseLoop) or loop in _TELLING:
        return
    _TELLING.add(loop)
    original, own = loop.run, vars(loop).get("run")
    if getattr(own, "__module__", "").startswith("amp_hooks."):
        own = None  # a wrapper of this package, which goes away as well

    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            with Runtime.of(runner).telling_how_it_ends(runner):
                return original(*args, **kwargs)
        finally:
            _TELLING.discard(loop)
            vars(loop).pop("run", None)
            if own is not None:
                loop.run = own

    loop.run = run


class AmpHook(Hook):
    """Attaches to the shared runtime and carries its state through checkpoints.

    A subclass overrides :meth:`attach` and :meth:`after_record`, and, if it has state
    that must survive a resume, :meth:`state` and :meth:`load_state`.
    """

    # What the config gave, for the ledger.
    arguments: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> AmpHook:
        """Refuse unknown arguments with a message that helps."""
        check_known_arguments(cls, kwargs)
        # Hooks are made before a checkpoint is read, so a resume needs nothing else.
        allow_mmengine_checkpoints()
        hook = super().__new__(cls)
        hook.arguments = kwargs
        return hook

    # --- for subclasses -----------------------------------------------------------
    def attach(self, runner: Runner, runtime: Runtime) -> None:
        """Prepare to watch; called once the model and the optimizer are complete."""

    def after_record(
        self, runner: Runner, runtime: Runtime, record: IterationRecord
    ) -> None:
        """Act on what the iteration's numbers say."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: plain numbers, strings and lists."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state` gave."""

    # --- MMEngine's events --------------------------------------------------------
    def before_run(self, runner: Runner) -> None:
        """Stand around the training loop, to tell how it ends."""
        tell_how_it_ends(runner)

    def before_train(self, runner: Runner) -> None:
        """Attach to optimizer and model."""
        runtime = Runtime.of(runner)
        runtime.tap.attach(runner.optim_wrapper)
        ours = [hook for hook in runner.hooks if isinstance(hook, AmpHook)]
        runtime.begin(runner, {hook.key(runner): hook.arguments for hook in ours})
        runtime.averaging.judges.append(self)
        self.attach(runner, runtime)

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Any = None,
    ) -> None:
        """Read the iteration's record, once for all hooks, and act on it."""
        runtime = Runtime.of(runner)
        if not runtime.averaging.has_acted(self, runner.iter):
            self.after_record(runner, runtime, runtime.record(runner, outputs))

    def after_train(self, runner: Runner) -> None:
        """Detach."""
        Runtime.of(runner).end(runner)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Put the state of this hook into the checkpoint."""
        if state := self.state():
            kept = checkpoint.setdefault(CHECKPOINT_KEY, {})
            kept[self.key(runner)] = state

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Take the state back, if the run is resumed and not merely initialised."""
        state = checkpoint.get(CHECKPOINT_KEY, {}).get(self.key(runner))
        if not private.resumes(runner) or state is None:
            return
        try:
            self.load_state(state)
        except (AttributeError, KeyError, TypeError, ValueError) as e:
            # Of another version of this hook; the run itself can go on.
            warn(
                f"{type(self).__name__} could not take back its state from the "
                f"checkpoint ({e!r}) and starts afresh."
            )

    def key(self, runner: Runner) -> str:
        """Class name; numbered where the config has several hooks of the class."""
        same = [hook for hook in runner.hooks if type(hook) is type(self)]
        place = next((i for i, hook in enumerate(same) if hook is self), 0)
        return type(self).__name__ + (f".{place}" if place else "")
