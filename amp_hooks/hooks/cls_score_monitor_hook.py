"""Watch the magnitude of the classification scores."""

from __future__ import annotations

from collections.abc import Sequence

from mmengine.logging import print_log
from mmengine.runner import Runner
from torch import nn

from ..core.checks import check_patterns
from ..registry import HOOKS
from ..runtime import Runtime, bare_model
from .base import AmpHook, check_targets


@HOOKS.register_module()
class ClsScoreMonitorHook(AmpHook):
    """Records the largest |cls_score| of every classifier layer in each iteration.

    The layers are found by themselves in the first training iteration: those whose
    output is nearest, in the autograd graph, to what a classification loss
    (``loss_cls``, ``loss_obj``, ``loss_heatmap``, ...) is called with. Cascade stages
    and FPN levels are covered; a layer used on several levels is one entry.

    Values are logits before any sigmoid or softmax; the largest is over finite values,
    and whether there are others is recorded beside it. Nothing is copied to the host
    but the record that all hooks share.

    Args:
        targets (str or Sequence[str], optional): fnmatch patterns over module names, in
            place of the search. Defaults to None.

    Raises:
        ValueError: At the start of training, if a pattern matches no module.

    Examples:
        >>> custom_hooks = [dict(type='amp_hooks.ClsScoreMonitorHook')]
        >>> custom_hooks = [
        ...     dict(type='amp_hooks.ClsScoreMonitorHook',
        ...          targets=['roi_head.bbox_head.fc_cls'])]
    """

    priority = 30

    def __init__(self, targets: str | Sequence[str] | None = None) -> None:
        self.targets = check_patterns("ClsScoreMonitorHook", "targets", targets)

    def before_run(self, runner: Runner) -> None:
        """Refuse a pattern that matches nothing."""
        check_targets(self, self.targets, runner)

    def attach(self, runner: Runner, runtime: Runtime) -> None:
        """Watch the named layers, or those that the first iteration shows."""
        runtime.logits.watch(bare_model(runner), self.targets, _say)


def _say(name: str, module: nn.Module) -> None:
    print_log(f"[amp_hooks] watching the logits of {name}", logger="current")
