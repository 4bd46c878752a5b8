"""Two ranks on gloo: a fault on one rank takes both back, to the same place."""

import os
import subprocess
import sys

import pytest
import torch

from tests import helpers


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_fault_on_one_rank_takes_both_back(digits, tmp_path, accumulate):
    hooks = [
        dict(type="BreakHook", what="images", at=[5], rank=1),
        *helpers.SUITE[:4],
        dict(type="amp_hooks.RollbackHook", interval=4),
        helpers.SUITE[-1],
    ]
    cfg = helpers.make_config(
        "retinanet", digits, tmp_path / "w", iters=9, hooks=hooks, accumulate=accumulate
    )
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.launcher = "pytorch"
    cfg.env_cfg.dist_cfg = dict(backend="gloo")
    cfg.model_wrapper_cfg = dict(
        type="MMDistributedDataParallel",
        device_ids=None,
        broadcast_buffers=False,
    )
    cfg.custom_imports = dict(imports=["tests.helpers"])
    cfg.dump(tmp_path / "config.py")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
        + [
            "--master_port=29631",
            str(helpers.ROOT / "tests/integration/ddp_program.py"),
        ]
        + [str(tmp_path / "config.py"), str(tmp_path / "out")],
        env=dict(os.environ, PYTHONPATH=str(helpers.ROOT), OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    a, b = (torch.load(tmp_path / f"out.{rank}") for rank in (0, 1))
    assert a["rollbacks"] == b["rollbacks"] == 1
    assert (a["lr"], a["scale"], a["iter"]) == (b["lr"], b["scale"], b["iter"])
    assert a["iter"] == 9
    parameters = [k for k in a["state"] if "running_" not in k and "ema" not in k]
    assert parameters
    assert [
        k for k in parameters if not torch.equal(a["state"][k], b["state"][k])
    ] == []
    assert all(torch.isfinite(t).all() for r in (a, b) for t in r["state"].values())
    (path,) = (tmp_path / "w").glob("*/stability.jsonl")
    (event,) = [e for e in helpers.read_ledger(path) if e["event"] == "rollback"]
    assert (event["iter"], event["target_iter"]) == (5, 4)
    assert event["verdict"] == "STATE_NONFINITE"
