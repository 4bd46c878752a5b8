"""Break a run on purpose, to see what the rest of the config makes of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import mmengine.dist as dist
from mmengine.hooks import Hook
from mmengine.runner import BaseLoop, Runner

from ..engine import private
from ..engine.checks import check_int
from ..engine.hook import AmpHook
from ..engine.messages import warn
from ..engine.patch import replace, wrap
from ..engine.runtime import Runtime
from ..engine.verdict import Verdict
from ..registry import HOOKS
from .fault_kinds import IN_BATCH, IN_STATE, IN_STEP, disk
from .fault_spec import Fault, read_fault
from .fault_table import KINDS
from .occurrence import Occurrence, expected_names

_NAMED = 5  # names in a ledger line


@HOOKS.register_module()
class FaultInjectionHook(AmpHook):
    """Injects faults at chosen iterations, as a rehearsal of a stability policy.

    Not for a run whose result matters: it says so at the start of training. It works
    with or without the rest of the suite, in both loops and in any precision. Each
    fault is a dict with these keys:

    - ``what`` (str): The kind, see below.
    - ``at`` (int or list[int]): Iteration in which it begins, counted from 0.
    - ``iters`` (int): So many iterations in a row, from each ``at``. Defaults to 1.
    - ``where`` (str or list[str]): fnmatch patterns over names, see below.
    - ``value``: See below. Of tensors: 'nan' (the default), 'inf', '-inf' or a number,
      which the element is set to, or 'x1000', by which it is multiplied.
    - ``count`` (int or 'all'): Elements of each tensor that are hit, which ``seed``
      chooses. Defaults to 1; to 'all' for a factor.
    - ``rank`` (int, optional): Only this rank. Defaults to None: all of them.

    ============= ================== ==================================================
    what          where              what happens
    ============= ================== ==================================================
    'forward'     modules (required) Their output in training has the value. Monitors
                                     see it, and HeadClampHook clamps it.
    'gradient'    parameters         Their gradient has it as soon as it is computed:
                  (required)         scaled, and before DDP averages it.
    'parameter'   parameters         The weights have it before the iteration, after
                  (required)         RollbackHook's snapshot and StepGuardHook's copies.
    'buffer'      buffers (required) The same for buffers.
    'optimizer'   parameters         The same for their optimizer state (momentum,
                  (required)         moments), which there is after the first step.
    'ema'         parameters ('*')   The same in the averaged model of each EMAHook,
                                     which begins as a copy after the first iteration.
    'loss'        losses ('*loss*')  They have the value, and gradients in proportion:
                                     NaN for NaN. No ``count``.
    'raise'       modules (None)     Their forward in training raises ValueError; with
                                     None it is raised between forward and backward.
                                     ``value``: the message; defaults to that of scipy's
                                     linear_sum_assignment given NaN. No ``count``.
    'images'      none               The batch's images have the value, as floats.
    'boxes'       none               ``count`` boxes of each sample are degenerate.
                                     ``value``: 'zero' width (the default), 'subpixel',
                                     'inverted', 'nan', or 'outside' the image.
    'disk'        none               Checkpoints cannot be written. ``value``: 'full'
                                     (the default; OSError ENOSPC), or 'slow:2.5' or
                                     2.5: so many seconds slower. No ``count``.
    ============= ================== ==================================================

    'images' and 'boxes' are in the batch before any other hook sees it. 'disk' holds
    from then on, RollbackHook's file included, until the next iteration begins or
    training ends, and so for checkpoints after the iteration, epoch or validation.

    A ``fault`` line of the ledger tells ``what``, ``where`` (the first five names),
    ``value`` and ``rank`` of what happened; of a fault on other ranks than 0 it tells
    what was scheduled. A fault that never happened is a warning after training.

    Args:
        faults (list[dict]): The faults, see above.
        seed (int): Chooses elements and boxes, together with the iteration and the
            fault's place in the list, so that a rerun or a resume hits the same ones.
            The random numbers of the run itself are not touched. Defaults to 0.

    Raises:
        TypeError, ValueError: A wrong key or value; at the start of training, a pattern
            that matches nothing, 'ema' without EMAHook, or a rank that does not exist.

    Examples:
        >>> custom_hooks = [
        ...     dict(type='amp_hooks.FaultInjectionHook', faults=[
        ...         dict(what='gradient', at=100, where='*fc_cls.weight', value='inf'),
        ...         dict(what='forward', at=200, iters=5, where='*.fc_cls',
        ...              value='x1000'),
        ...         dict(what='disk', at=500, value='full')])]
    """

    # First, for batch and disk; what must come last is left to a hook at the other end.
    priority = "HIGHEST"
    borne = False  # to break things is what it is for

    def __init__(self, faults: list[dict[str, Any]], seed: int = 0) -> None:
        owner = "FaultInjectionHook"
        if not isinstance(faults, (list, tuple)) or not faults:
            raise TypeError(
                f"{owner}: faults must be a list of at least one dict, such as "
                f"[dict(what='loss', at=100, value='nan')], got {faults!r}."
            )
        self.faults: list[Fault] = []
        for i, entry in enumerate(faults):
            if not isinstance(entry, dict):
                raise TypeError(
                    f"{owner}: faults[{i}] must be a dict such as "
                    f"dict(what='loss', at=100, value='nan'), got {entry!r}."
                )
            self.faults.append(read_fault(f"{owner}: faults[{i}]", entry))
        self.seed = check_int(owner, "seed", seed, 0)
        self._first = 0  # iteration of this process
        self._names: list[list[str]] = []  # that each fault is going to hit
        self._happened: set[int] = set()
        self._due: dict[int, Occurrence] = {}  # in this iteration, on this rank
        self._undo = ExitStack()
        self._stepping = False

    def before_run(self, runner: Runner) -> None:
        """Refuse what cannot happen in this run; add the hook of the other end."""
        self._end()
        self._names = []
        for i, fault in enumerate(self.faults):
            owner = f"FaultInjectionHook: faults[{i}]"
            if fault.rank is not None and fault.rank >= dist.get_world_size():
                raise ValueError(
                    f"{owner}: rank={fault.rank} does not exist, there are "
                    f"{dist.get_world_size()} (counted from 0). Lower it, leave it "
                    "out, or start more processes."
                )
            self._names.append(expected_names(owner, fault, runner))
        if not any(getattr(h, "faults", None) is self for h in runner.hooks):
            runner.register_hook(_LastHook(self), priority="LOWEST")
        self._end_with(private.train_loop(runner))
        super().before_run(runner)  # around that

    def before_train(self, runner: Runner) -> None:
        """Say what is going to happen."""
        self._happened.clear()
        self._first = runner.iter
        Runtime.of(runner).replayed.append(self._again)
        shown = "; ".join(map(str, self.faults))
        warn(
            f"FaultInjectionHook is going to damage this run on purpose: {shown}. For "
            "a run whose result matters take it out of custom_hooks."
        )

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        """Begin with what other hooks shall find: a bad batch, a full disk."""
        self._end()
        for i, fault in enumerate(self.faults):
            if not fault.is_due(runner.iter):
                continue
            seed = f"{self.seed}/{runner.iter}/{i}"
            occurrence = Occurrence(runner, fault, seed, self._tell)
            if fault.rank not in (None, dist.get_rank()):
                occurrence.hits = self._names[i]
                self._emit(occurrence)
                continue
            self._due[i] = occurrence
            if fault.what in IN_BATCH:
                IN_BATCH[fault.what](occurrence, data_batch)
                occurrence.tell()
            elif fault.what == "disk":
                disk(occurrence, self._undo)

    def inject(self, runner: Runner) -> None:
        """Damage the state, and what train_step is going to do; after all others."""
        for occurrence in self._due.values():
            if inject := IN_STATE.get(occurrence.fault.what):
                inject(occurrence)
                occurrence.tell()
                if not occurrence.hits:
                    fault = occurrence.fault
                    warn(
                        f"iteration {runner.iter}: the fault {fault} could not happen; "
                        f"{KINDS[fault.what].missed}."
                    )
        in_step = [o for o in self._due.values() if o.fault.what in IN_STEP]
        if not in_step:
            return
        original = runner.model.train_step
        this_step = self._undo.enter_context(ExitStack())

        def train_step(*args: Any, **kwargs: Any) -> Any:
            # However the step ends, nothing of this is left after it.
            with this_step:
                self._stepping = True
                this_step.callback(setattr, self, "_stepping", False)
                for occurrence in in_step:
                    this_step.callback(occurrence.tell)
                    IN_STEP[occurrence.fault.what](occurrence, this_step)
                return original(*args, **kwargs)

        replace(runner.model, "train_step", train_step, this_step)

    @contextmanager
    def _again(self) -> Iterator[None]:
        """The faults of this iteration's training step, for who runs it again."""
        with ExitStack() as stack:
            for occurrence in self._due.values():
                if occurrence.fault.what in IN_STEP and not self._stepping:
                    IN_STEP[occurrence.fault.what](occurrence, stack)
            yield

    def after_train_iter(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: this hook does not watch."""

    def after_train(self, runner: Runner) -> None:
        """Nothing yet: a checkpoint may still be written."""

    def finish(self, runner: Runner) -> None:
        """Give everything back and say what never happened; after all others."""
        self._end()
        happened = set().union(*dist.all_gather_object(self._happened))
        for i, fault in enumerate(self.faults):
            if i in happened:
                continue
            why = KINDS[fault.what].missed
            if not fault.overlaps(self._first, runner.iter):
                why = f"this run had iterations {self._first} to {runner.iter - 1}"
            warn(f"FaultInjectionHook: faults[{i}] never happened: {fault}; {why}.")

    def _end_with(self, loop: Any) -> None:
        """Give everything back even if the training loop raises."""
        if not isinstance(loop, BaseLoop):  # not built: this is a test run
            return
        stack = ExitStack()

        def run(original: Any, *args: Any, **kwargs: Any) -> Any:
            with stack:
                return original(*args, **kwargs)

        stack.callback(self._end)
        stack.callback(wrap(loop, "run", run))

    def _end(self) -> None:
        self._undo.close()
        self._due.clear()

    def _tell(self, occurrence: Occurrence) -> None:
        self._happened |= {i for i, o in self._due.items() if o is occurrence}
        self._emit(occurrence)

    def _emit(self, occurrence: Occurrence) -> None:
        fault = occurrence.fault
        Runtime.of(occurrence.runner).emit(
            "fault",
            occurrence.iter,
            Verdict.HEALTHY,
            what=fault.what,
            where=occurrence.hits[:_NAMED],
            value=fault.value,
            rank=fault.rank,
        )


class _LastHook(Hook):
    """The other end: acts after every other hook, CheckpointHook included."""

    def __init__(self, faults: FaultInjectionHook) -> None:
        self.faults = faults

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        """Inject what must come after the others' snapshots."""
        self.faults.inject(runner)

    def after_train(self, runner: Runner) -> None:
        """End."""
        self.faults.finish(runner)
