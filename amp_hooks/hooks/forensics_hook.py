"""Look into a fault: run its batch once more and say where NaN arose."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import mmengine.dist as dist
from mmengine.runner import Runner
from torch import nn

from ..core.checks import check_bool, check_int, check_iterations, check_number
from ..core.finite import nonfinite_names
from ..core.nan_errors import is_nan_error
from ..core.recorder import IterationRecord
from ..core.verdict import Verdict
from ..describe import describe_optimizer, utc_now
from ..fault_dump import save_dump
from ..fault_report import finding, kind_of, report
from ..faults import ForwardFaults
from ..registry import HOOKS
from ..replay import Call, Replay, run_again
from ..rng import capture_rng
from ..runtime import Runtime, bare_model, refuse_sharded, warn
from ..step_tap import accumulating, active_scaler, iter_wrappers
from .base import AmpHook

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
    ``scripts/replay_fault.py`` the fault is run again, in other precisions. One line of
    the log and the ledger's ``forensics`` line tell the finding. After that, the next
    fault is looked into once a healthy step has been taken.

    Training afterwards is bit for bit what it would have been. Before a fault, the hook
    keeps the state of the random number generators at each forward pass, some 50 µs on
    the host; the device does nothing more and is not waited for. The second run needs
    about as much memory as the first; if there is not enough, training goes on without
    a report.

    Without StepGuardHook, an optimizer that steps on NaN has spoiled the weights before
    anybody can look; the report says so. With several processes, the first rank whose
    loss or logits failed looks into its batch, alone: averages over the ranks are its
    own.

    Args:
        at (list[int], optional): Iterations to look into although nothing is wrong.
            Defaults to None.
        max_dumps (int): Folders in the whole run, also if it is resumed. Defaults to 3.
        save_weights (bool): Keep the weights; without them the fault cannot be run
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

    # After the monitors, and before StepGuardHook and HeadClampHook change what the
    # iteration has found.
    priority = 31

    def __init__(
        self,
        at: Sequence[int] | None = None,
        max_dumps: int = 3,
        save_weights: bool = True,
        max_mib: float = 1024.0,
        frames: int = 21,
    ) -> None:
        owner = "ForensicsHook"
        self.at = check_iterations(owner, "at", at)
        self.max_dumps = check_int(owner, "max_dumps", max_dumps, 1)
        self.save_weights = check_bool(owner, "save_weights", save_weights)
        self.max_mib = check_number(owner, "max_mib", max_mib, above=0)
        self.frames = check_int(owner, "frames", frames, 1)
        self.dumps = 0  # folders written in this run
        self.bytes = 0
        self._looked = False  # into this incident: no healthy step since
        self._iter = -1  # looked into by the handler of its exception
        self._calls: list[Call] = []  # of this iteration
        self._failed: list[Call] = []  # of the window's first bad iteration, this rank
        self._asked: Replay | None = None

    def attach(self, runner: Runner, runtime: Runtime) -> None:
        """See what the model is called with, and exceptions."""
        refuse_sharded(self, runner)
        self._training = False

        def on_call(module: nn.Module, args: Any, kwargs: Any) -> None:
            if not self._training or runtime.recorder.muted:
                return
            self._calls = [*self._calls, Call(args, kwargs, capture_rng())][:_MAX_CALLS]
            if runner.iter in self.at and dist.is_main_process():
                self._asked = self._run(runner, runtime, self._calls, None)

        model = bare_model(runner)
        self._handle = model.register_forward_pre_hook(on_call, with_kwargs=True)
        runtime.errors.attach(runner)
        runtime.errors.handlers.insert(0, lambda e: self._on_error(runner, runtime, e))

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        """Forget the last iteration."""
        self._training = True
        self._calls, self._asked = [], None
        if not accumulating(runner.optim_wrapper):
            self._failed = []

    def after_record(
        self, runner: Runner, runtime: Runtime, record: IterationRecord
    ) -> None:
        """Look into a fault, once for each incident."""
        self._training = False
        here = ForwardFaults()
        here.add(record, runtime.logits.faulty(record, runtime.clamped))
        self._failed = self._failed or (self._calls if here else [])
        if record.verdict.is_bad and not self._looked:
            self._looked = True
            if self._iter != record.iter:
                self._look(runner, runtime, record.verdict, record)
        elif record.iter in self.at:
            self._write(runner, runtime, record.verdict, record, self._asked)
        if record.stepped and record.verdict is Verdict.HEALTHY:
            self._looked = False
        # Nothing is held from one iteration to the next, but a bad one of a window.
        self._calls, self._asked = [], None

    def after_train(self, runner: Runner) -> None:
        """Detach."""
        super().after_train(runner)
        self._handle.remove()
        self._calls, self._failed = [], []

    def state(self) -> dict[str, Any]:
        """How many folders there are, and their size."""
        return dict(dumps=self.dumps, bytes=self.bytes)

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on counting."""
        self.dumps, self.bytes = int(state["dumps"]), int(state["bytes"])

    def _on_error(self, runner: Runner, runtime: Runtime, error: Exception) -> bool:
        """Look before the run ends; whether it ends is for others to say."""
        alone = dist.get_world_size() == 1
        if alone and not self._looked and self._calls and is_nan_error(error):
            self._iter = runner.iter
            self._look(runner, runtime, Verdict.RAISED, None)
        return False

    def _look(
        self,
        runner: Runner,
        runtime: Runtime,
        verdict: Verdict,
        record: IterationRecord | None,
    ) -> None:
        if self.dumps >= self.max_dumps:
            return
        ranks = record.ranks if record is not None else []
        replay = None
        if dist.get_rank() == (ranks[0] if ranks else 0):
            calls = self._failed or self._calls
            replay = self._run(runner, runtime, calls, record) if calls else None
        self._write(runner, runtime, verdict, record, replay)

    def _run(
        self,
        runner: Runner,
        runtime: Runtime,
        calls: list[Call],
        record: IterationRecord | None,
    ) -> Replay | None:
        scales = record.all("scale") if record is not None else []
        for _, wrapper in iter_wrappers(runner.optim_wrapper):
            if not scales and (scaler := active_scaler(wrapper)) is not None:
                scales = [scaler.get_scale()]
        try:
            return run_again(
                runner, runtime, calls, min(scales, default=1.0), self.frames
            )
        except Exception as e:  # no memory, for one
            warn(
                f"ForensicsHook could not look into iteration {runner.iter}: "
                f"{type(e).__name__}: {e}. Training goes on."
            )
            return None

    def _write(
        self,
        runner: Runner,
        runtime: Runtime,
        verdict: Verdict,
        record: IterationRecord | None,
        replay: Replay | None,
    ) -> None:
        """Write the folder on the rank that has looked; tell it on all of them."""
        told: dict[str, Any] | None = None
        if replay is not None and self.dumps < self.max_dumps:
            folder = os.path.join(runner.log_dir, "faults", f"iter_{runner.iter}")
            about = self._about(runner, runtime, verdict, record)
            try:
                data = save_dump(
                    folder,
                    report(replay, about),
                    replay.call,
                    bare_model(runner) if self.save_weights else None,
                    self.max_mib * 2**20 - self.bytes,
                )
                told = dict(
                    folder=folder,
                    kind=kind_of(replay),
                    module=data["module"],
                    finding=finding(replay),
                    rank=dist.get_rank(),
                    bytes=data["bytes"],
                )
            except Exception as e:  # a full disk, or a batch that cannot be pickled
                warn(f"could not write {folder}: {e!r}. Training goes on.")
        if record is not None and dist.get_world_size() > 1:
            told = next((t for t in dist.all_gather_object(told) if t), None)
        if told is None:
            return
        self.dumps += 1
        self.bytes += told["bytes"]
        runtime.emit("forensics", runner.iter, verdict, **told)
        warn(f"iteration {runner.iter}: {told['finding']} See {told['folder']}.")

    def _about(
        self,
        runner: Runner,
        runtime: Runtime,
        verdict: Verdict,
        record: IterationRecord | None,
    ) -> dict[str, Any]:
        optimizers = dict(iter_wrappers(runner.optim_wrapper))
        notes = []
        # Of a step that was taken, the batch has been run again with other weights.
        guarded = runtime.tap.gate is not None
        for name, wrapper in optimizers.items():
            bad = record is not None and record.get("found_inf", name)
            if bad and not guarded and active_scaler(wrapper) is None:
                notes.append(
                    "The optimizer stepped on gradients that were not finite before "
                    "this was run, so the weights are not those of the fault. "
                    "StepGuardHook refuses such steps."
                )
        spoiled = nonfinite_names(dict(bare_model(runner).named_parameters()))
        if spoiled:
            notes.append(f"Weights that are not finite: {', '.join(spoiled)}.")
        dtypes = [getattr(w, "cast_dtype", None) for w in optimizers.values()]
        return dict(
            iter=runner.iter,
            verdict=verdict.value,
            rank=dist.get_rank(),
            time=utc_now(),
            optimizers=[describe_optimizer(*item) for item in optimizers.items()],
            dtype=str(dtypes[0] or "torch.float32").rsplit(".", 1)[-1],
            layers=list(runtime.logits.layers),
            clamped=sorted(runtime.clamped),
            notes=notes,
        )
