"""MMEngine hooks that keep mixed-precision detection training alive.

Everything is attached through a config::

    custom_hooks = [dict(type='amp_hooks.RollbackHook')]

Importing the package imports neither torch nor mmengine, which :mod:`amp_hooks.report`
can do without: each name below is fetched when it is first asked for. The hooks need
these two only.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import PreflightError, TrainingDivergedError
from .version import __version__

if TYPE_CHECKING:
    from .engine.recorder import FlightRecorder, IterationRecord
    from .engine.verdict import Verdict
    from .hooks import (
        AmpPreflightHook,
        BadBatchHook,
        BoxSanityHook,
        ClsScoreMonitorHook,
        FaultInjectionHook,
        ForensicsHook,
        GradNormMonitorHook,
        HeadClampHook,
        HealthHook,
        LossScaleMonitorHook,
        PrecisionFallbackHook,
        RollbackHook,
        StabilityHook,
        StabilityPanelHook,
        StepGuardHook,
    )
    from .precision.cpu_amp import CpuAmpOptimWrapper

__all__ = [
    "AmpPreflightHook",
    "BadBatchHook",
    "BoxSanityHook",
    "ClsScoreMonitorHook",
    "CpuAmpOptimWrapper",
    "FaultInjectionHook",
    "FlightRecorder",
    "ForensicsHook",
    "GradNormMonitorHook",
    "HeadClampHook",
    "HealthHook",
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

_ELSEWHERE = {
    "CpuAmpOptimWrapper": "precision.cpu_amp",
    "FlightRecorder": "engine.recorder",
    "IterationRecord": "engine.recorder",
    "Verdict": "engine.verdict",
}
_MODULES = ("hooks", "registry")  # also without an import of their own


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import_module(f"{__name__}.registry")  # looks first at what is installed
    module = import_module(f"{__name__}.{_ELSEWHERE.get(name, 'hooks')}")
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
