"""The members of StabilityHook, by name: for those who only read a config."""

from __future__ import annotations

# Argument of StabilityHook to the hook that it configures, in the order in which hooks
# of the same priority run. A new member needs a line here, and an argument there.
MEMBERS = {
    "boxes": "BoxSanityHook",
    "loss_scale": "LossScaleMonitorHook",
    "cls_score": "ClsScoreMonitorHook",
    "grad_norm": "GradNormMonitorHook",
    "step_guard": "StepGuardHook",
    "forensics": "ForensicsHook",
    "bad_batch": "BadBatchHook",
    "head_clamp": "HeadClampHook",
    "health": "HealthHook",
    "rollback": "RollbackHook",
    "precision_fallback": "PrecisionFallbackHook",
    "preflight": "AmpPreflightHook",
    "panel": "StabilityPanelHook",
}
