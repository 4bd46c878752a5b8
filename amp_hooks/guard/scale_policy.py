"""What the loss scale does after an overflow."""

from __future__ import annotations

from typing import Any

from mmengine.optim import OptimWrapper

from ..engine import private, torch_api
from ..engine.recorder import IterationRecord
from ..engine.run import active_scaler
from ..engine.verdict import Verdict

# What no loss scale can cure.
_NOT_OF_THE_SCALE = (Verdict.FORWARD_NONFINITE, Verdict.RAISED, Verdict.DIVERGED)


class ScalePolicy:
    """Corrects what GradScaler made of its scale, after the step and on the host.

    A healthy step is left alone. After one with non-finite gradients:

    - of a non-finite forward pass, scale and growth tracker are what they were;
    - of an overflow that the hysteresis bears, the scale is what it was;
    - otherwise the scale is lowered by GradScaler's backoff factor, a static one too
      (which MMEngine would keep), but not below the floor. A static one never rises.

    Args:
        floor: Never raises a scale that was configured below it.
        hysteresis: Overflows it takes to lower the scale.
    """

    def __init__(self, floor: float, hysteresis: int) -> None:
        self.floor = floor
        self.tolerance = hysteresis
        self.static: dict[str, float] = {}  # lowered ones, by optimizer
        self._hysteresis: dict[str, Hysteresis] = {}
        self._growth: dict[str, float] = {}

    def begin(self, name: str, wrapper: OptimWrapper) -> None:
        """Begin, or go on after a resume with a static scale that was lowered."""
        if (scaler := active_scaler(wrapper)) is not None:
            self._growth[name] = scaler.state_dict()["_growth_tracker"]
        if name in self.static and private.static_scale(wrapper):
            private.set_static_scale(wrapper, self.static[name])

    def after_step(
        self, name: str, wrapper: OptimWrapper, record: IterationRecord
    ) -> float | None:
        """Look at one optimizer's step; between two steps it does nothing.

        Returns:
            The loss scale of the next step, if the step had non-finite gradients.
        """
        scaler = active_scaler(wrapper)
        found_inf, used = record.get("found_inf", name), record.get("scale", name)
        if scaler is None or found_inf is None or used is None:
            return None
        hysteresis = self._hysteresis_of(name, scaler)
        if not found_inf:
            hysteresis.step()
            self._growth[name] = record.get("growth_tracker", name) or 0.0
            return None
        growth = 0.0
        if record.verdict in _NOT_OF_THE_SCALE:
            scale, growth = used, self._growth.get(name, 0.0)
        elif not hysteresis.overflow():
            scale = used
        else:
            lowest = min(self.floor, used)
            scale = max(lowest, used * scaler.get_backoff_factor())
        torch_api.scale_tensor(scaler).fill_(scale)
        torch_api.growth_tensor(scaler).fill_(int(growth))
        if private.static_scale(wrapper) is not None and scale != used:
            # MMEngine writes this one back at the end of every step.
            self.static[name] = scale
            private.set_static_scale(wrapper, scale)
        self._growth[name] = growth
        record.put("scale_next", scale, name)
        return scale

    def forget(self) -> None:
        """The growth trackers are not what they were."""
        self._growth.clear()

    def state(self) -> dict[str, Any]:
        """Plain numbers."""
        left = {name: [h.left, h.clean] for name, h in self._hysteresis.items()}
        return dict(static=dict(self.static), hysteresis=left)

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state` gave."""
        self.static = {name: float(s) for name, s in state["static"].items()}
        for name, (left, clean) in state["hysteresis"].items():
            self._hysteresis[name] = Hysteresis(self.tolerance, interval=1)
            self._hysteresis[name].left = min(int(left), self.tolerance)
            self._hysteresis[name].clean = int(clean)

    def _hysteresis_of(self, name: str, scaler: Any) -> Hysteresis:
        if name not in self._hysteresis:
            self._hysteresis[name] = Hysteresis(self.tolerance, interval=1)
        self._hysteresis[name].interval = scaler.get_growth_interval()
        return self._hysteresis[name]


class Hysteresis:
    """Counts overflows as Megatron-LM's DynamicGradScaler does.

    The first ``tolerance - 1`` overflows leave the scale alone, every further one
    lowers it, until ``interval`` clean steps in a row restore the tolerance. Source:
    https://github.com/NVIDIA/Megatron-LM/blob/main/megatron/core/optimizer/grad_scaler.py

    Args:
        tolerance: 1 lowers the scale at every overflow, as torch's GradScaler does.
        interval: Clean steps after which the tolerance is as at the beginning.
    """

    def __init__(self, tolerance: int, interval: int) -> None:
        self.tolerance = tolerance
        self.interval = interval
        self.left = tolerance
        self.clean = 0

    def overflow(self) -> bool:
        """Count an overflow; whether the scale is to be lowered for it."""
        self.clean = 0
        self.left = max(0, self.left - 1)
        return self.left == 0

    def step(self) -> None:
        """Count a step that was taken."""
        self.clean += 1
        if self.clean >= self.interval:
            self.left, self.clean = self.tolerance, 0
