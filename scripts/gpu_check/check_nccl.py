"""One rank of torchrun, with the card's own backend."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from gpu_check import runs
from gpu_check.machine import Card
from gpu_check.rows import Row, judged

ITERS, AT = 8, 4
HOOKS = [
    dict(
        type="amp_hooks.FaultInjectionHook",
        faults=[dict(what="loss", value="nan", at=AT)],
    ),
    dict(type="amp_hooks.StabilityHook", rollback=dict(interval=2, patience=1)),
]


def check(machine: Card, place: Path) -> Iterator[Row]:
    """With the suite, and a fault that makes it go back."""
    cfg = runs.config(
        "retinanet", place.parent / "pictures", place / "run", iters=ITERS, hooks=HOOKS
    )
    cfg.launcher = "pytorch"
    cfg.env_cfg.dist_cfg = dict(backend=machine.backend)
    if machine.rehearsed:
        wrapper = dict(type="MMDistributedDataParallel", device_ids=None)
        cfg.model_wrapper_cfg = wrapper
    path, out = place / "config.py", place / "result.json"
    cfg.dump(str(path))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node=1", "-m", "gpu_check.one_rank", str(path), str(out)]
    subprocess.run(command, check=True)
    result = json.loads(out.read_text())
    losses = result["losses"]
    bad = [i for i, loss in enumerate(losses) if not math.isfinite(loss)]
    found = (
        f"{result['model']} over {result['backend']}: {len(losses)} iterations, "
        f"{result['rollbacks']} rollback, last loss {losses[-1]:.3g}"
    )
    good = (
        result["backend"] == machine.backend
        and len(losses) == ITERS
        and bad == [AT]
        and result["rollbacks"] == 1
    )
    yield judged(f"one rank on {machine.backend}", found, good, **result)
