"""Watch the loss scale."""

from __future__ import annotations

from functools import partial
from typing import Any

from mmengine.logging import print_log
from mmengine.runner import Runner

from ..config_check.old_keys import ignored_key
from ..engine import private
from ..engine.checks import check_int
from ..engine.describe import describe_optimizer
from ..engine.hook import AmpHook
from ..engine.messages import warn
from ..engine.recorder import IterationRecord
from ..engine.run import iter_wrappers
from ..engine.runtime import Runtime
from ..registry import HOOKS
from .skips import PATIENCE, SkipCounter, SkipKind


@HOOKS.register_module()
class LossScaleMonitorHook(AmpHook):
    """Counts skipped optimizer steps and tells when the loss scale collapses.

    A dynamic loss scale finds its level by overflowing: in the first 100 steps that is
    called calibration, later on an ordinary overflow, and neither is reported. One of
    an iteration whose loss or logits were not finite is neither. Many
    skips in a row, or one with the scale at 1.0 or below, are a collapse: no loss
    scale helps any more. That gets one warning, until a step is taken again.

    At the start it logs what is really active: optimizer wrapper, dtype, loss scale and
    gradient clipping, a line for each optimizer of an OptimWrapperDict; and it warns of
    ``fp16=dict(...)`` left over from MMDetection 2.x, which 3.x ignores
    (mmdetection#10865, #11433). Without a loss scale it watches nothing.

    Args:
        patience (int): So many skipped steps in a row are called a collapse. A healthy
            scale of 65536 reaches 1.0 in 16 skips. Defaults to 16.

    Examples:
        >>> custom_hooks = [dict(type='amp_hooks.LossScaleMonitorHook')]
    """

    priority = 30
    together = False

    def __init__(self, patience: int = PATIENCE) -> None:
        self.patience = check_int("LossScaleMonitorHook", "patience", patience, 1)
        self.counters: dict[str, SkipCounter] = {}  # by optimizer
        self._warned: set[str] = set()
        self._static: set[str] = set()  # a scale that does not look for its level

    def attach(self, runner: Runner, runtime: Runtime) -> None:
        """Say which wrapper, dtype, loss scale and clipping are active."""
        for name, wrapper in iter_wrappers(runner.optim_wrapper):
            if private.static_scale(wrapper) is not None:
                self._static.add(name)
            print_log(
                f"[amp_hooks] {describe_optimizer(name, wrapper)}", logger="current"
            )
        for finding in ignored_key(runner.cfg.to_dict(), "fp16"):
            warn(f"{finding.what} {finding.remedy} {finding.lines}".rstrip())
        runtime.observers.append(self.guarded(partial(self._count, runtime), {}))

    def after_train(self, runner: Runner) -> None:
        """Sum up."""
        super().after_train(runner)
        for name, counter in self.counters.items():
            kinds = ", ".join(f"{n} {kind}" for kind, n in counter.by_kind.items())
            print_log(
                f"[amp_hooks] optimizer{' ' + name if name else ''}: {counter.total} "
                f"of {counter.steps} steps skipped ({kinds})",
                logger="current",
            )

    def state(self) -> dict[str, Any]:
        """The counters."""
        return {name: counter.state() for name, counter in self.counters.items()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on counting."""
        for name, counters in state.items():
            self._counter(name).load_state(counters)

    def _counter(self, name: str) -> SkipCounter:
        return self.counters.setdefault(name, SkipCounter(self.patience))

    def _count(self, runtime: Runtime, record: IterationRecord) -> dict[str, Any]:
        kinds = {}
        for name, scale in record.values.get("scale", {}).items():
            found_inf = record.get("found_inf", name)
            if found_inf is None:
                continue
            counter = self._counter(name)
            at_floor = not scale > runtime.scale_floor
            # NaN of the forward pass says nothing of where the scale has to be.
            forward = not record.verdict.is_of_the_scale
            kind = counter.add(bool(found_inf), at_floor, forward)
            normal = kind in (SkipKind.CALIBRATION, SkipKind.ORDINARY)
            if kind is not None and not (normal and name in self._static):
                kinds[name] = kind.value
            if counter.collapsed and name not in self._warned:
                self._warned.add(name)
                warn(_collapse(name, counter, scale))
            elif kind is None:
                self._warned.discard(name)
        for name, counter in self.counters.items():
            record.put("skipped_total", counter.total, name)
            record.put("skipped_streak", counter.streak, name)
            record.put("skipped_share", counter.share, name)
        if not kinds:
            return {}
        return dict(skip=kinds[""] if set(kinds) == {""} else kinds)


def _collapse(name: str, counter: SkipCounter, scale: float) -> str:
    whose = f" of optimizer {name}" if name else ""
    streak = counter.streak
    return (
        f"the loss scale{whose} has collapsed: {streak} optimizer "
        f"step{'s in a row were' if streak > 1 else ' was'} skipped and the scale is "
        f"{scale:g}, so the model has stopped learning. A lower scale does not help "
        "against infinite or NaN activations: lower the learning rate, lengthen the "
        "warm-up, or add amp_hooks.HeadClampHook and amp_hooks.RollbackHook."
    )
