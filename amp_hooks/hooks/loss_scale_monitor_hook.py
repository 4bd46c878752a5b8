"""Watch the loss scale."""

from __future__ import annotations

from typing import Any

from mmengine.logging import print_log
from mmengine.runner import Runner

from ..core.checks import check_int
from ..core.recorder import IterationRecord
from ..registry import HOOKS
from ..runtime import SCALE_FLOOR, Runtime, warn
from ..step_tap import active_scaler, iter_wrappers
from .base import AmpHook


@HOOKS.register_module()
class LossScaleMonitorHook(AmpHook):
    """Counts skipped optimizer steps and tells when the loss scale collapses.

    A skipped step now and then is how a dynamic loss scale finds its level, and is
    not reported. A streak of them, or a scale at 1.0 or below, means that no loss scale
    helps any more; that gets one warning.

    At the start it logs what is really active: optimizer wrapper, dtype, loss scale and
    gradient clipping. It works without a loss scale too, and then watches nothing.

    Args:
        patience (int): So many skipped steps in a row are called a collapse. A healthy
            scale of 65536 reaches 1.0 in 16 skips. Defaults to 16.

    Examples:
        >>> custom_hooks = [dict(type='amp_hooks.LossScaleMonitorHook')]
    """

    priority = 30

    def __init__(self, patience: int = 16) -> None:
        self.patience = check_int("LossScaleMonitorHook", "patience", patience, 1)
        self.skipped_total = 0
        self.streak = 0
        self._warned = False

    def attach(self, runner: Runner, runtime: Runtime) -> None:
        """Say which wrapper, dtype, loss scale and clipping are active."""
        for name, wrapper in iter_wrappers(runner.optim_wrapper):
            scaler = active_scaler(wrapper)
            dtype = getattr(wrapper, "cast_dtype", None)
            if dtype is None:
                dtype = "float32" if scaler is None else "autocast's default"
            scale = "none"
            if scaler is not None:
                static = getattr(wrapper, "_scale_update_param", None)
                kind = "dynamic" if static is None else "static"
                scale = f"{scaler.get_scale():g} ({kind})"
            print_log(
                f"[amp_hooks] optimizer{' ' + name if name else ''}: "
                f"{type(wrapper).__name__}, dtype {dtype}, loss scale {scale}, "
                f"clip_grad {wrapper.clip_grad_kwargs or 'none'}",
                logger="current",
            )

    def after_record(
        self, runner: Runner, runtime: Runtime, record: IterationRecord
    ) -> None:
        """Count skips and warn of a collapse."""
        scales, found_inf = record.all("scale"), record.all("found_inf")
        if scales and found_inf:
            skipped = any(found_inf)
            self.skipped_total += skipped
            self.streak = self.streak + 1 if skipped else 0
            at_floor = skipped and not min(scales) > SCALE_FLOOR
            if (self.streak >= self.patience or at_floor) and not self._warned:
                self._warned = True
                warn(
                    f"the loss scale has collapsed: {self.streak} optimizer steps in a "
                    f"row were skipped and the scale is {min(scales):g}, so the model "
                    "has stopped learning. A lower scale does not help against "
                    "infinite or NaN activations: lower the learning rate, lengthen "
                    "the warm-up, or add amp_hooks.HeadClampHook and "
                    "amp_hooks.RollbackHook."
                )
            if self._warned and self.streak == 0:
                self._warned = False
        record.put("skipped_total", self.skipped_total)

    def state(self) -> dict[str, Any]:
        """Counters."""
        return dict(skipped_total=self.skipped_total, streak=self.streak)

    def load_state(self, state: dict[str, Any]) -> None:
        """Counters."""
        self.skipped_total = int(state["skipped_total"])
        self.streak = int(state["streak"])
