"""Every hook, from the folder of what it does: ``amp_hooks.hooks.X``."""

from .clamp.head_clamp_hook import HeadClampHook
from .data.bad_batch_hook import BadBatchHook
from .data.box_sanity_hook import BoxSanityHook
from .forensics.forensics_hook import ForensicsHook
from .guard.step_guard_hook import StepGuardHook
from .health.health_hook import HealthHook
from .inject.fault_injection_hook import FaultInjectionHook
from .monitor.cls_score_monitor_hook import ClsScoreMonitorHook
from .monitor.grad_norm_monitor_hook import GradNormMonitorHook
from .monitor.loss_scale_monitor_hook import LossScaleMonitorHook
from .panel.stability_panel_hook import StabilityPanelHook
from .precision.precision_fallback_hook import PrecisionFallbackHook
from .preflight.amp_preflight_hook import AmpPreflightHook
from .rollback.rollback_hook import RollbackHook
from .suite import StabilityHook

__all__ = [
    "AmpPreflightHook",
    "BadBatchHook",
    "BoxSanityHook",
    "ClsScoreMonitorHook",
    "FaultInjectionHook",
    "ForensicsHook",
    "GradNormMonitorHook",
    "HeadClampHook",
    "HealthHook",
    "LossScaleMonitorHook",
    "PrecisionFallbackHook",
    "RollbackHook",
    "StabilityHook",
    "StabilityPanelHook",
    "StepGuardHook",
]
