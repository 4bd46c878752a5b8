"""The hooks: thin adapters from MMEngine's events to :mod:`amp_hooks.core`."""

from .cls_score_monitor_hook import ClsScoreMonitorHook
from .grad_norm_monitor_hook import GradNormMonitorHook
from .head_clamp_hook import HeadClampHook
from .loss_scale_monitor_hook import LossScaleMonitorHook
from .rollback_hook import RollbackHook
from .stability_panel_hook import StabilityPanelHook

__all__ = [
    "ClsScoreMonitorHook",
    "GradNormMonitorHook",
    "HeadClampHook",
    "LossScaleMonitorHook",
    "RollbackHook",
    "StabilityPanelHook",
]
