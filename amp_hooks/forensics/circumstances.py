"""What a run was like when something in it was not finite."""

from __future__ import annotations

from typing import Any

import mmengine.dist as dist
from mmengine.runner import Runner

from ..engine.describe import describe_optimizer, utc_now
from ..engine.recorder import IterationRecord
from ..engine.run import active_scaler, bare_model, iter_wrappers
from ..engine.runtime import Runtime
from ..engine.tensors import nonfinite_names
from ..engine.verdict import Verdict


def circumstances(
    runner: Runner,
    runtime: Runtime,
    verdict: Verdict,
    record: IterationRecord | None,
    dtype: str,
) -> dict[str, Any]:
    """What a report tells beside the incident itself; plain data.

    Args:
        runner: At the end of the iteration.
        runtime: Of the runner.
        verdict: On the iteration.
        record: Of the iteration, if it came to its end.
        dtype: That the batch was run again in.
    """
    optimizers = dict(iter_wrappers(runner.optim_wrapper))
    notes = []
    guarded = runtime.tap.gate is not None
    if verdict.is_bad and not guarded:
        notes.append(
            "Without StepGuardHook, buffers are as the fault has left them, BatchNorm "
            "statistics among them."
        )
    for name, wrapper in optimizers.items():
        bad = record is not None and record.get("found_inf", name)
        if bad and not guarded and active_scaler(wrapper) is None:
            notes.append(
                "The optimizer stepped on gradients that were not finite before this "
                "was run, so the weights are not those of the fault. StepGuardHook "
                "refuses such steps."
            )
    if spoiled := nonfinite_names(dict(bare_model(runner).named_parameters())):
        notes.append(f"Weights that are not finite: {', '.join(spoiled)}.")
    return dict(
        iter=runner.iter,
        verdict=verdict.value,
        rank=dist.get_rank(),
        time=utc_now(),
        optimizers=[describe_optimizer(*item) for item in optimizers.items()],
        dtype=dtype,
        layers=[name for watch in runtime.forward.watches for name in watch.layers],
        clamped=sorted(runtime.forward.clamped),
        clamp_limit=min(runtime.clamp_limits, default=None),
        notes=notes,
    )
