"""The hooks: thin adapters from MMEngine's events to :mod:`amp_hooks.core`."""

from .amp_preflight_hook import AmpPreflightHook
from .bad_batch_hook import BadBatchHook
from .cls_score_monitor_hook import ClsScoreMonitorHook
from .fault_injection_hook import FaultInjectionHook
from .forensics_hook import ForensicsHook
from .grad_norm_monitor_hook import GradNormMonitorHook
from .head_clamp_hook import HeadClampHook
from .loss_scale_monitor_hook import LossScaleMonitorHook
from .precision_fallback_hook import PrecisionFallbackHook
from .rollback_hook import RollbackHook
from .stability_hook import StabilityHook
from .stability_panel_hook import StabilityPanelHook
from .step_guard_hook import StepGuardHook

__all__ = [
    "AmpPreflightHook",
    "BadBatchHook",
    "ClsScoreMonitorHook",
    "FaultInjectionHook",
    "ForensicsHook",
    "GradNormMonitorHook",
    "HeadClampHook",
    "LossScaleMonitorHook",
    "PrecisionFallbackHook",
    "RollbackHook",
    "StabilityHook",
    "StabilityPanelHook",
    "StepGuardHook",
]
