"""Look into an incident: run its batch once more and say where NaN arose."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import Any

import mmengine.dist as dist
from mmengine.runner import Runner
from torch import nn

from ..engine.checks import check_bool, check_int, check_iterations, check_number
from ..engine.hook import AmpHook
from ..engine.messages import warn
from ..engine.recorder import IterationRecord
from ..engine.rng import States, capture_rng
from ..engine.run import (
    accumulating,
    active_scaler,
    bare_model,
    iter_wrappers,
)
from ..engine.runtime import Runtime
from ..engine.sharded import is_sharded
from ..engine.supported import refuse_unsupported
from ..engine.traceable import Later
from ..engine.verdict import Verdict
from ..guard.nan_steps import is_nan_error
from ..registry import HOOKS
from .circumstances import circumstances
from .dump import save_dump
from .forward_trace import FRAMES
from .replay import Call, Replay, run_again
from .report import kind_of, report

_MAX_CALLS = 8  # of the model in one iteration


@HOOKS.register_module()
class ForensicsHook(AmpHook):
    """Names the module in which the first value that is not finite arose.

    At the first bad iteration (loss, logits or gradients not finite, or an exception
    because of NaN) the same batch is run once more with a hook on every module: same
    weights, random numbers, precision and clamp. The report names the first module
    whose output is not finite while its inputs are, with the operation and its line of
    code; the magnitudes of inputs, outputs and weights of the 21 module calls before;
    the parameters whose gradients are not finite; images and boxes. As fairseq's
    NanDetector does, with the frames of Hugging Face's DebugUnderflowOverflow.

    Written to ``<work_dir>/<timestamp>/faults/iter_<N>/``: ``report.txt``,
    ``report.json``, ``batch.pth`` and ``weights.pth``. With
    ``amp-hooks replay`` the batch is run again, in other precisions. One line of
    the log and the ledger's ``forensics`` line tell the conclusion. The next incident
    is looked into once a healthy step has been taken.

    Training afterwards is bit for bit what it would have been. All the while the hook
    notes at each forward pass what the batch consists of and the state of the random
    number generators, some 0.2 ms on the host; the device does nothing more and is not
    waited for. The second run needs about as much memory as the first; if there is not
    enough, training goes on without a report.

    Without StepGuardHook, the second run finds buffers, and in FP32 the weights, as the
    incident has left them; the report says so. With several processes, the first rank
    whose loss or logits failed looks into its batch, or, if only gradients failed,
    each, and the first that finds something writes; alone, so that averages over the
    ranks are its own.

    Args:
        at (list[int], optional): Iterations to look into although nothing may be wrong.
            Defaults to None.
        max_dumps (int): Incidents that are looked into in the whole run, also if it is
            resumed; those of ``at`` do not count. Defaults to 3.
        save_weights (bool): Keep the weights; without them the batch cannot be run
            again. Defaults to True.
        max_mib (float): Size of all folders of the run together, in MiB; weights or
            batch that do not fit are left out. Defaults to 1024.0.
        frames (int): Module calls that are shown. Defaults to 21.

    Raises:
        TypeError, ValueError: A wrong argument.

    Examples:
        >>> custom_hooks = [
        ...     dict(type='amp_hooks.StepGuardHook'),
        ...     dict(type='amp_hooks.ForensicsHook')]
    """

    # After StepGuardHook, so that buffers are as the iteration found them, and before
    # HeadClampHook and RollbackHook change what it has found.
    priority = 33

    def __init__(
        self,
        at: Sequence[int] | None = None,
        max_dumps: int = 3,
        save_weights: bool = True,
        max_mib: float = 1024.0,
        frames: int = FRAMES,
    ) -> None:
        owner = "ForensicsHook"
        self.at = check_iterations(owner, "at", at)
        self.max_dumps = check_int(owner, "max_dumps", max_dumps, 1)
        self.save_weights = check_bool(owner, "save_weights", save_weights)
        self.max_mib = check_number(owner, "max_mib", max_mib, above=0)
        self.frames = check_int(owner, "frames", frames, 1)
        self.dumps = 0  # incidents looked into, in this run
        self.bytes = 0  # of all folders
        self._looked = False  # into this incident: no healthy step since
        self._calls: list[Call] = []  # of this iteration
        self._failed: list[Call] = []  # of the step's first bad iteration, this rank
        self._asked: Replay | None = None
        self._training = False
        self._later: Later | None = None
        self._compiled = False  # the model is called in compiled code
        self._rng: States | None = None  # before this iteration, if so

    def attach(self, runner: Runner, runtime: Runtime) -> None:
        """See what the model is called with, and exceptions."""
        refuse_unsupported(self, runner)

        def on_call(module: nn.Module, args: Any, kwargs: Any) -> None:
            if not self._training or runtime.recorder.muted:
                return
            # What is not going to be looked into is not remembered.
            done = self._looked or self.dumps >= self.max_dumps
            if done and runner.iter not in self.at:
                return
            rng = self._rng or capture_rng()
            self._calls = [*self._calls, Call(args, kwargs, rng)][:_MAX_CALLS]
            if runner.iter in self.at and dist.is_main_process():
                self._asked = self._run(runner, runtime, self._calls, None)

        later, model = Later(self.guarded(on_call)), bare_model(runner)
        handle = model.register_forward_pre_hook(later, with_kwargs=True)
        self.undo.callback(handle.remove)
        self.undo.callback(later.close)
        self._later = later
        runtime.tap.on_backward.append(self._catch_up)
        self.undo.callback(runtime.tap.on_backward.remove, self._catch_up)
        self.undo.callback(self._forget)
        runtime.errors.attach(runner)
        # The last to be asked: an exception that StepGuardHook bears is looked into
        # later, when its traceback holds no memory any more.
        on_error = partial(self._on_error, runner, runtime)
        runtime.errors.handlers.append(self.guarded(on_error, None))

    def _forget(self) -> None:
        self._calls, self._failed, self._later = [], [], None

    def _catch_up(self) -> None:
        if self._later is not None:
            self._compiled |= self._later.catch_up()

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        """Forget the last iteration."""
        self._training = True
        self._calls, self._asked = [], None
        self._rng = capture_rng() if self._compiled else None
        if not accumulating(runner.optim_wrapper):
            self._failed = []

    def after_record(
        self, runner: Runner, runtime: Runtime, record: IterationRecord
    ) -> None:
        """Look into an incident, once for each."""
        self._catch_up()
        self._training = False
        self._failed = self._failed or (self._calls if runtime.forward.here else [])
        # Verdicts are the same on every rank, so all of them come to the same places.
        of_the_batch = record.verdict.is_of_the_batch and not record.get("gave_up")
        if of_the_batch and not self._looked:
            self._looked = True
            self._look(runner, runtime, record.verdict, record)
        elif record.iter in self.at:
            self._tell(runner, runtime, record.verdict, record, self._asked)
        if record.proves_something and record.verdict is Verdict.HEALTHY:
            self._looked = False
        # Nothing is held between iterations, but a bad one of an accumulation.
        self._calls, self._asked = [], None

    def state(self) -> dict[str, Any]:
        """How often it has looked, and the size of what it has written."""
        return dict(dumps=self.dumps, bytes=self.bytes)

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on counting."""
        self.dumps, self.bytes = int(state["dumps"]), int(state["bytes"])

    def _on_error(self, runner: Runner, runtime: Runtime, error: Exception) -> None:
        """Nobody has dealt with it, so the run ends: look before that."""
        self._catch_up()
        alone = dist.get_world_size() == 1
        if alone and not self._looked and self._calls and is_nan_error(error):
            self._look(runner, runtime, Verdict.RAISED, None)

    def _look(
        self,
        runner: Runner,
        runtime: Runtime,
        verdict: Verdict,
        record: IterationRecord | None,
    ) -> None:
        if self.dumps >= self.max_dumps:
            return
        self.dumps += 1  # also if it fails: it shall not be tried for ever
        ranks = record.ranks if record is not None else []
        replay = None
        # Of gradients nobody knows whose they were, so every rank looks at its own.
        if not ranks or dist.get_rank() == ranks[0]:
            calls = self._failed or self._calls
            replay = self._run(runner, runtime, calls, record) if calls else None
        self._tell(runner, runtime, verdict, record, replay)

    def _run(
        self,
        runner: Runner,
        runtime: Runtime,
        calls: list[Call],
        record: IterationRecord | None,
    ) -> Replay | None:
        if is_sharded(runner):
            return None  # a pass waits for the other ranks
        try:
            scales = record.all("scale") if record is not None else []
            for _, wrapper in iter_wrappers(runner.optim_wrapper):
                if not scales and (scaler := active_scaler(wrapper)) is not None:
                    scales = [scaler.get_scale()]
            scale = min(scales, default=1.0)
            return run_again(runner, runtime, calls, scale, self.frames)
        except Exception as e:  # no memory, for one
            warn(
                f"ForensicsHook could not look into iteration {runner.iter}: "
                f"{type(e).__name__}: {e}. Training goes on."
            )
            return None

    def _tell(
        self,
        runner: Runner,
        runtime: Runtime,
        verdict: Verdict,
        record: IterationRecord | None,
        replay: Replay | None,
    ) -> None:
        """The rank that has found something writes the folder; all ranks tell of it."""
        several = record is not None and dist.get_world_size() > 1
        if several:
            kinds = dist.all_gather_object(None if replay is None else kind_of(replay))
            looked = [rank for rank, kind in enumerate(kinds) if kind]
            found = [rank for rank in looked if kinds[rank] != "unknown"]
            if dist.get_rank() not in (found or looked)[:1]:
                replay = None
        written = None
        if replay is not None:
            written = self._write(runner, runtime, verdict, record, replay)
        if several:
            written = next((t for t in dist.all_gather_object(written) if t), None)
        if written is None:
            return
        self.bytes += written["bytes"]
        runtime.emit("forensics", runner.iter, verdict, **written)
        warn(f"iteration {runner.iter}: {written['finding']}\n{written['folder']}")

    def _write(
        self,
        runner: Runner,
        runtime: Runtime,
        verdict: Verdict,
        record: IterationRecord | None,
        replay: Replay,
    ) -> dict[str, Any] | None:
        folder = os.path.join(runner.log_dir, "faults", f"iter_{runner.iter}")
        try:
            with replay.call.as_given():
                dtype = replay.dtype
                about = circumstances(runner, runtime, verdict, record, dtype)
                data = save_dump(
                    folder,
                    report(replay, about),
                    replay.call,
                    bare_model(runner) if self.save_weights else None,
                    self.max_mib * 2**20 - self.bytes,
                )
        except Exception as e:  # a full disk, for one
            warn(f"could not write {folder}: {e!r}. Training goes on.")
            return None
        return dict(
            folder=folder,
            kind=data["kind"],
            module=data["module"],
            finding=data["finding"],
            rank=dist.get_rank(),
            bytes=data["bytes"],
        )
