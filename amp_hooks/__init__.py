"""MMEngine hooks that keep mixed-precision detection training alive.

Everything is attached through a config::

    custom_hooks = [dict(type='amp_hooks.RollbackHook')]

Importing the package needs torch and mmengine only.
"""

from .core.recorder import FlightRecorder, IterationRecord
from .core.verdict import Verdict
from .errors import PreflightError, TrainingDivergedError
from .hooks import (
    AmpPreflightHook,
    BadBatchHook,
    ClsScoreMonitorHook,
    FaultInjectionHook,
    ForensicsHook,
    GradNormMonitorHook,
    HeadClampHook,
    LossScaleMonitorHook,
    PrecisionFallbackHook,
    RollbackHook,
    StabilityHook,
    StabilityPanelHook,
    StepGuardHook,
)
from .optim_wrapper import CpuAmpOptimWrapper
from .version import __version__

__all__ = [
    "AmpPreflightHook",
    "BadBatchHook",
    "ClsScoreMonitorHook",
    "CpuAmpOptimWrapper",
    "FaultInjectionHook",
    "FlightRecorder",
    "ForensicsHook",
    "GradNormMonitorHook",
    "HeadClampHook",
    "IterationRecord",
    "LossScaleMonitorHook",
    "PrecisionFallbackHook",
    "PreflightError",
    "RollbackHook",
    "StabilityHook",
    "StabilityPanelHook",
    "StepGuardHook",
    "TrainingDivergedError",
    "Verdict",
    "__version__",
]
