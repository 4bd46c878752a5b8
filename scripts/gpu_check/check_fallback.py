"""Leaving FP16: does training go on in BF16, and in FP32?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from compare_runs import read_ledger

from gpu_check import runs
from gpu_check.machine import Card
from gpu_check.probe import Probe
from gpu_check.rows import Row, judged

# RetinaNet's focal loss has no BF16 kernel in mmcv; RTMDet computes its own in torch.
CASES = (("rtmdet", "bfloat16"), ("retinanet", "float32"), ("retinanet", "bfloat16"))


def check(machine: Card, place: Path) -> Iterator[Row]:
    """After two rollbacks, with losses that are made NaN."""
    iters = machine.pick(12, 8)
    for detector, to in CASES:
        folder = place / f"{detector}-{to}"
        cfg = runs.config(
            detector,
            place.parent / "pictures",
            folder,
            iters=iters,
            hooks=[
                dict(
                    type="amp_hooks.FaultInjectionHook",
                    faults=[dict(what="loss", value="nan", at=[2, 4])],
                ),
                dict(type="amp_hooks.StepGuardHook"),
                dict(type="amp_hooks.RollbackHook", patience=1, lr_factor=1.0),
                dict(type="amp_hooks.PrecisionFallbackHook", to=to),
            ],
        )
        probe = Probe(machine.device)
        runner = runs.train(cfg, probe)
        gone = [
            line["to"] for line in read_ledger(folder) if line["event"] == "fallback"
        ]
        last = probe.dtypes[iters - 1]
        loss = runs.losses(runner)[-1]
        # Where the card or an operator lacks BF16, FP32 is what follows by itself.
        first = to if machine.bf16() else "float32"
        arrived = gone[:1] == [first] and last == gone[-1]
        found = f"{' > '.join(['float16', *gone])}, computes in {last}, loss {loss:.3g}"
        yield judged(
            f"fallback of {detector} to {to}",
            found,
            arrived and math.isfinite(loss),
            dtypes=probe.dtypes,
            fallbacks=gone,
        )
