"""Watch the magnitude of the classification scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine.logging import print_log
from mmengine.runner import Runner
from torch import nn

from ..engine.checks import check_int, check_patterns
from ..engine.hook import AmpHook, check_targets
from ..engine.messages import warn
from ..engine.recorder import IterationRecord
from ..engine.run import bare_model
from ..engine.runtime import Runtime
from ..registry import HOOKS
from .logit_watch import LogitWatch
from .logits import Forecast, LogitTrend


@HOOKS.register_module()
class ClsScoreMonitorHook(AmpHook):
    """Records the largest ``|cls_score|`` of every classifier layer in each iteration.

    The layers are found by themselves in the first training iteration: those whose
    output is nearest, in the autograd graph, to what a classification loss
    (``loss_cls``, ``loss_obj``, ``loss_heatmap``, ...) is called with. Cascade stages
    and FPN levels are covered; a layer used on several levels is one entry. A model
    without such a loss (keypoints, depth) has no classifier: after 20 iterations the
    layers that its other losses lead to are watched instead, and the log says so.

    Values are logits before any sigmoid or softmax: the largest finite magnitude, how
    many are NaN or infinite, and the headroom in bits to the largest number of the
    layer's precision. An infinity counts in a convolution or linear layer, which gives
    one only by overflow; other modules may mask positions with it.

    **Early warning.** When a layer's logits are beyond 100 and rise so fast that they
    would pass FP16's limit of 65504 within ``warn_ahead`` iterations, a warning names
    the layer and an ``early_warning`` event goes into the ledger; again only after
    ``warn_ahead`` iterations without such a forecast. Each process watches its own
    logits; rank 0 reports.

    Args:
        targets (str or Sequence[str], optional): fnmatch patterns over module names, in
            place of the search. Defaults to None.
        warn_ahead (int): Iterations before the expected overflow in which to warn; 0
            switches the early warning off. Defaults to 100.

    Raises:
        ValueError: At the start of training, if a pattern matches no module.

    Examples:
        >>> custom_hooks = [dict(type='amp_hooks.ClsScoreMonitorHook')]
        >>> custom_hooks = [
        ...     dict(type='amp_hooks.ClsScoreMonitorHook',
        ...          targets=['roi_head.bbox_head.fc_cls'])]
    """

    priority = 30
    together = False

    def __init__(
        self, targets: str | Sequence[str] | None = None, warn_ahead: int = 100
    ) -> None:
        owner = "ClsScoreMonitorHook"
        self.targets = check_patterns(owner, "targets", targets)
        self.warn_ahead = check_int(owner, "warn_ahead", warn_ahead, 0)
        self._trends: dict[str, LogitTrend] = {}
        self._warned: dict[str, int] = {}  # layer to the iteration of its last forecast

    def before_run(self, runner: Runner) -> None:
        """Refuse a pattern that matches nothing."""
        super().before_run(runner)
        check_targets(self, self.targets, runner)

    def attach(self, runner: Runner, runtime: Runtime) -> None:
        """Watch the named layers, or those that the first iteration shows."""
        runtime.errors.attach(runner)  # to see those of torch.compile
        self._watch = runtime.watch_forward(LogitWatch)
        self._watch.watch(bare_model(runner), self.targets, _say)

    def after_record(
        self, runner: Runner, runtime: Runtime, record: IterationRecord
    ) -> None:
        """Warn of an overflow that is coming."""
        if not self.warn_ahead:
            return
        expected: dict[str, Forecast] = {}
        for layer, absmax in record.values.get("logit_absmax", {}).items():
            forecast = self._trend(layer).add(absmax)
            if forecast is None:
                continue
            last = self._warned.get(layer)
            if last is None or record.iter - last > self.warn_ahead:
                expected[layer] = forecast
            self._warned[layer] = record.iter
        for layer, forecast in expected.items():
            runtime.emit(
                "early_warning",
                record.iter,
                record.verdict,
                layer=layer,
                absmax=forecast.absmax,
                usual=forecast.usual,
                iterations_left=forecast.iterations_left,
            )
            clamped = layer not in self._watch.predictions
            what = "logits" if clamped else "predictions"
            remedy = "; amp_hooks.HeadClampHook bounds the logits meanwhile" * clamped
            warn(
                f"the {what} of {layer} are heading for an overflow: |{what[:-1]}| is "
                f"{forecast.absmax:.0f}, lately {forecast.usual:.0f}; at this rate "
                f"FP16 overflows in about {forecast.iterations_left} iterations. Lower "
                f"the learning rate or lengthen the warm-up{remedy}."
            )

    def state(self) -> dict[str, Any]:
        """The usual magnitude of each layer."""
        return {layer: trend.state() for layer, trend in self._trends.items()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from it."""
        for layer, trend in state.items():
            self._trend(layer).load_state(trend)

    def _trend(self, layer: str) -> LogitTrend:
        return self._trends.setdefault(layer, LogitTrend(self.warn_ahead))


def _say(name: str, module: nn.Module) -> None:
    print_log(f"[amp_hooks] watching the logits of {name}", logger="current")
