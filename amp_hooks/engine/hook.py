"""What all hooks of the suite have in common."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner

from . import private
from .checks import check_known_arguments, match_names
from .compiling import leave_uncompiled
from .ending import tell_how_it_ends
from .messages import warn
from .named import named_modules
from .recorder import IterationRecord
from .run import bare_model
from .runtime import Runtime
from .safe_load import allow_mmengine_checkpoints

CHECKPOINT_KEY = "amp_hooks"
SAVING = "before_save_checkpoint"  # which MMEngine calls on rank 0 alone


def check_targets(hook: AmpHook, targets: list[str], runner: Runner) -> None:
    """Refuse a pattern that matches no module; to be called in ``before_run``.

    There the model is complete and no checkpoint has been read yet, so that a wrong
    pattern fails within seconds.
    """
    names = [name for name, _ in named_modules(bare_model(runner)) if name]
    match_names(type(hook).__name__, "targets", targets, names)


class OnRank0:
    """A part of a hook that rank 0 does alone: if it fails, the rest goes on.

    Attributes:
        name: For messages and the ledger.
    """

    together = False

    def __init__(self, name: str) -> None:
        self.name = name


def on_event(hook: AmpHook, event: str, runner: Runner, *args: Any, **more: Any) -> Any:
    """What MMEngine calls: one of the hook's events, whose failures are borne."""
    # Finding it is a good part of what an event costs.
    failures = (hook.joined or Runtime.of(runner)).failures
    if not hook.borne:
        return getattr(type(hook), event)(hook, runner, *args, **more)
    owner = hook.saving if event == SAVING else hook
    if failures.calm or not (hook in failures.off or owner in failures.off):
        try:
            return getattr(type(hook), event)(hook, runner, *args, **more)
        except Exception as e:
            failures.bear_or_raise(owner, event, e)
    if event == "after_train":
        hook.end(runner)
    return None


class AmpHook(Hook):
    """Attaches to the shared runtime and carries its state through checkpoints.

    A subclass overrides :meth:`attach` and :meth:`after_record`, and, if it has state
    that must survive a resume, :meth:`state` and :meth:`load_state`. Whatever it puts
    into the run to be called goes through :meth:`guarded`; what takes it away again is
    given to ``undo`` at once, which is closed at the end of training, or when this hook
    has failed.
    """

    undo: ExitStack

    # What the config gave, for the ledger.
    arguments: dict[str, Any]
    saving: OnRank0
    # Whether its exceptions are told and borne, or end the run.
    borne = True
    # Whether several ranks do it together: a failure on some of them ends the run.
    together = True
    # The runtime, while it is attached.
    joined: Runtime | None = None

    def __new__(cls, *args: Any, **kwargs: Any) -> AmpHook:
        """Refuse unknown arguments with a message that helps."""
        check_known_arguments(cls, kwargs)
        # Hooks are made before a checkpoint is read, so a resume needs nothing else.
        allow_mmengine_checkpoints()
        hook = super().__new__(cls)
        hook.arguments = kwargs
        hook.saving = OnRank0(f"{cls.__name__}.{SAVING}")
        for name in dir(cls):
            if name.startswith(("before_", "after_")) and name != "after_record":
                event = getattr(cls, name)
                if event is getattr(Hook, name, None):  # which does nothing
                    continue
                call = functools.partial(on_event, hook, name)
                setattr(hook, name, functools.update_wrapper(call, event))
        return hook

    # --- for subclasses -----------------------------------------------------------
    def attach(self, runner: Runner, runtime: Runtime) -> None:
        """Prepare to watch; called once the model and the optimizer are complete."""

    def guarded(
        self, what: Callable[..., Any], otherwise: Any = None
    ) -> Callable[..., Any]:
        """``what``, to be called in the run: a failure switches this hook off.

        Args:
            what: Called as it is, as long as this hook is attached.
            otherwise: What is returned in its place after a failure.
        """
        if self.joined is None:
            return what
        return self.joined.failures.guarded(self, what, otherwise)

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
        self.let_go()  # of an earlier training
        leave_uncompiled(__name__.partition(".")[0])
        runtime, self.undo = Runtime.of(runner), ExitStack()
        self.joined = runtime
        runtime.failures.register(self, self.undo.close)
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
        runtime = self.joined or Runtime.of(runner)
        record = runtime.record(runner, outputs)
        if not runtime.averaging.has_acted(self, record.iter):
            self.after_record(runner, runtime, record)

    def after_train(self, runner: Runner) -> None:
        """Detach."""
        self.undo.close()
        self.end(runner)

    def let_go(self) -> None:
        """An exception has ended the training: there are no events any more."""
        if self.joined is not None:
            self.joined = None
            self.undo.close()

    def end(self, runner: Runner) -> None:
        """Say that this hook has nothing more to do."""
        if self.joined is not None:
            self.joined = None
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
