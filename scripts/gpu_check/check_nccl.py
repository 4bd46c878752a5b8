"""One rank of torchrun, with the card's own backend."""

from __future__ import annotations

import json
import math
import os
import socket
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
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=1"]
    # The name of a machine without a network may lead nowhere.
    command += ["--master_addr=127.0.0.1", f"--master_port={free_port()}"]
    command += ["-m", "gpu_check.one_rank", str(path), str(out)]
    alone = dict(NCCL_SOCKET_IFNAME="lo", GLOO_SOCKET_IFNAME="lo")
    subprocess.run(command, check=True, env=alone | dict(os.environ))
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


def free_port() -> int:
    """That nobody listens to."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
