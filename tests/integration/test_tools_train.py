"""MMDetection's own tools, as they ship in its wheel and as a user calls them.

The configs say nothing of the suite: the command line attaches it.
"""

import os
import pickle
import re
import shutil
import signal
import socket
import sys
import time
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from amp_hooks.engine.safe_load import allow_mmengine_checkpoints
from amp_hooks.engine.safe_read import read_safely
from amp_hooks.engine.tensors import named_tensors, nonfinite_names
from tests import helpers, processes

SUITE = "default_hooks.stability.type=amp_hooks.StabilityHook"
OFTEN = "default_hooks.stability.rollback.interval=4"
AT_ONCE = "default_hooks.stability.rollback.probation=0"
REHEARSED = "optim_wrapper.type=amp_hooks.CpuAmpOptimWrapper"
NAN_WEIGHTS = dict(where="bbox_head.retina_cls.weight")
LR = 0.001


def write_config(path, digits, *, validate=False, **options):
    """A config of MMDetection's kind: FP32, and nothing of ours but a fault."""
    cfg = helpers.make_config("retinanet", digits, "", precision="float32", **options)
    cfg.pop("work_dir")  # as theirs: work_dirs/CONFIG, below the current folder
    cfg.log_level = "INFO"
    cfg.default_hooks.checkpoint.interval = 10**6  # and at the end
    cfg.auto_scale_lr = dict(enable=False, base_batch_size=4)
    cfg.model.test_cfg.score_thr = 0.0  # so young a detector is sure of nothing
    if not validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.dump(path)
    return path


def options(*more):
    return ["--cfg-options", SUITE, *more]


def train(config, *arguments, **how):
    """In the folder of the config, which is not the checkout."""
    return processes.run(
        *processes.train(config.name, *arguments), cwd=config.parent, **how
    )


def events(work_dir, event):
    return [
        line
        for path in sorted(work_dir.glob("*/stability.jsonl"))
        for line in helpers.read_ledger(path)
        if line["event"] == event
    ]


def load(path):
    allow_mmengine_checkpoints()
    return read_safely(path)


def last(work_dir):
    return load((work_dir / "last_checkpoint").read_text())


def warnings_in(text):
    """Those of Python's warnings module; paths and lines are left out."""
    return set(re.findall(r"^\S+: (\w*Warning: .*)$", text, re.M))


# --- attached by the command line ----------------------------------------------------
def test_it_changes_nothing_and_adds_no_warning(digits, tmp_path):
    """--auto-scale-lr, the epoch loop, a config without custom_hooks."""
    config = write_config(tmp_path / "detector.py", digits, epochs=1)
    text = config.read_text()
    config.write_text(re.sub(r"^custom_hooks = .*\n", "", text, flags=re.M))
    assert "amp_hooks" not in config.read_text()
    short = ["train_dataloader.dataset.indices=8"]
    scaled = ["--auto-scale-lr"]
    stock = train(config, *scaled, "--work-dir", "stock", "--cfg-options", *short)
    ours = train(config, *scaled, *options(*short))

    assert warnings_in(ours.stderr) == warnings_in(stock.stderr)
    a = last(tmp_path / "stock")
    b = last(tmp_path / "work_dirs" / "detector")
    for part in ("state_dict", "ema_state_dict", "optimizer"):
        one, other = (dict(named_tensors(saved[part])) for saved in (a, b))
        assert one.keys() == other.keys()
        assert [n for n, t in one.items() if not torch.equal(t, other[n])] == []
    # 2 images a step for a base of 4.
    (group,) = b["optimizer"]["param_groups"]
    assert group["initial_lr"] == LR / 2
    (start,) = events(tmp_path / "work_dirs" / "detector", "start")
    assert start["hooks"]["RollbackHook"] == {}


def test_it_joins_the_custom_hooks_that_there_are(digits, tmp_path):
    """And is what a config's custom_hooks would attach, member for member."""
    ema = dict(type="EMAHook", priority=49)  # YOLOX's and RTMDet's are there
    ours = dict(type="amp_hooks.StabilityHook", head_clamp=None)
    orders = []
    for listed, named in (([ours], {}), ([], {"default_hooks.stability": ours})):
        runner = helpers.build_runner(
            "retinanet",
            digits,
            tmp_path / str(len(orders)),
            iters=1,
            hooks=[ema, *listed],
            ema=False,
            options=named,
        )
        runner.train()
        orders.append([type(hook).__name__ for hook in runner.hooks])
    assert "HeadClampHook" not in orders[0]
    assert orders[0] == orders[1]


# --- a fault that really happens -----------------------------------------------------
def kill_after_rollback(config, work_dir, *arguments):
    """Start a run, and SIGKILL it when a good file after the rollback is named.

    Returns:
        A copy of that file.
    """
    command = processes.train(config, "--work-dir", work_dir, *arguments)
    pointer, end = work_dir / "last_checkpoint", time.monotonic() + 200
    with open(work_dir.with_suffix(".log"), "w") as log:
        running = processes.start(*command, stderr=log)
        try:
            while not re.search(r"rollback/iter_([89]|\d\d)", read(pointer)):
                assert running.poll() is None, Path(log.name).read_text()[-3000:]
                assert time.monotonic() < end
                time.sleep(0.02)
        finally:
            running.send_signal(signal.SIGKILL)
            running.wait()
    # The resumed run rotates it away.
    return shutil.copy(read(pointer), work_dir.with_suffix(".pth"))


def read(path):
    return path.read_text() if path.exists() else ""


@pytest.mark.parametrize(
    ("loop", "more", "factor"),
    [
        # Without a guard a step may have been the cause, and the rate is lowered.
        (dict(epochs=10**6), ("default_hooks.stability.step_guard=None",), 0.1),
        (dict(iters=10**6), (REHEARSED,), 1.0),
    ],
    ids=["epoch, FP32", "iter, FP16"],
)
def test_nan_weights_then_killed_then_resumed_then_tested(
    digits, tmp_path, loop, more, factor
):
    hooks = [helpers.fault("parameter", [5], **NAN_WEIGHTS)]
    config = write_config(tmp_path / "c.py", digits, hooks=hooks, validate=True, **loop)
    work_dir = tmp_path / "work"
    suite = [OFTEN, AT_ONCE, *more]
    kept = kill_after_rollback(config, work_dir, "--auto-scale-lr", *options(*suite))
    (rollback,) = events(work_dir, "rollback")
    assert (rollback["iter"], rollback["target_iter"]) == (5, 4)
    assert rollback["verdict"] == "STATE_NONFINITE"
    meta = load(kept)["meta"]

    again = ["--work-dir", work_dir, "--auto-scale-lr", "--resume"]
    if "iters" in loop:
        stop = [f"train_cfg.max_iters={meta['iter'] + 3}"]
    else:
        stop = [f"train_cfg.max_epochs={meta['epoch'] + 1}"]
    resumed = processes.train(config.name, *again, *options(*suite, *stop))[1:]
    processes.fork(*resumed, cwd=config.parent)
    (resume,) = events(work_dir, "resume")
    assert resume["iter"] >= meta["iter"]
    assert (resume["rollbacks"], resume["lr_factor"]) == (1, factor)
    end = last(work_dir)
    assert end["meta"]["iter"] > resume["iter"]
    assert nonfinite_names(end["state_dict"]) == []
    (group,) = end["optimizer"]["param_groups"]
    assert group["initial_lr"] == pytest.approx(LR / 2 * factor)
    assert len(events(work_dir, "rollback")) == 1

    # Both kinds of checkpoint; the config that was written has the suite in it.
    (by_mmengine,) = work_dir.glob("*.pth")
    assert finite_scores(work_dir / "c.py", by_mmengine, tmp_path / "a.pkl")
    if "iters" in loop:
        # From a file that was named, into another folder.
        named = ["--work-dir", tmp_path / "b", "--resume", kept]
        train(config, *named, *options(*suite, *stop))
        (resume,) = events(tmp_path / "b", "resume")
        assert resume["iter"] == meta["iter"]
        assert (resume["rollbacks"], resume["lr_factor"]) == (1, factor)
    else:
        ours = finite_scores(config, kept, tmp_path / "b.pkl", *options())
        trusted = dict(TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD="1")
        stock = finite_scores(config, kept, tmp_path / "c.pkl", **trusted)
        assert ours == stock


def finite_scores(config, checkpoint, out, *arguments, **env):
    """What tools/test.py finds in the images, with some model that is whole."""
    tool = processes.find("test.py")
    command = [sys.executable, tool, config, checkpoint, "--out", out, *arguments]
    processes.run(*command, cwd=config.parent, **env)
    with open(out, "rb") as file:
        found = pickle.load(file)
    scores = [image["pred_instances"]["scores"] for image in found]
    assert len(scores) == 8
    assert all(len(s) and torch.isfinite(s).all() for s in scores)
    return [s.tolist() for s in scores]


# --- several ranks --------------------------------------------------------------------
def test_dist_train(digits, tmp_path):
    """``bash tools/dist_train.sh CONFIG 2``; rank 1 has NaN weights."""
    hooks = [helpers.fault("parameter", [5], rank=1, **NAN_WEIGHTS)]
    config = write_config(tmp_path / "c.py", digits, hooks=hooks, iters=9)
    cfg = Config.fromfile(config)
    # What a CPU asks for, with and without us.
    cfg.env_cfg.dist_cfg = dict(backend="gloo")
    cfg.custom_imports = dict(imports=["tests.integration.ranks_on_a_cpu"])
    cfg.model_wrapper_cfg = dict(type="MMDistributedDataParallel", device_ids=None)
    cfg.dump(config)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    tool = ["bash", processes.find("dist_train.sh"), "c.py", 2, "--auto-scale-lr"]
    done = processes.run(
        *tool, *options(OFTEN, AT_ONCE), cwd=tmp_path, PATH=path, PORT=str(port)
    )
    work_dir = tmp_path / "work_dirs" / "c"
    (rollback,) = events(work_dir, "rollback")
    assert (rollback["iter"], rollback["target_iter"]) == (5, 4)
    end = last(work_dir)
    assert end["meta"]["iter"] == 9
    assert nonfinite_names(end["state_dict"]) == []
    # 2 ranks of 2 images for a base of 4.
    (group,) = end["optimizer"]["param_groups"]
    assert group["initial_lr"] == LR
    assert "has been overridden" not in done.stderr


# --- --amp ----------------------------------------------------------------------------
@pytest.mark.long
def test_amp_without_a_gpu_says_what_mmengine_says(digits, tmp_path):
    """MMEngine's sentence and exit status, and nothing of ours on top of them."""
    config = write_config(tmp_path / "c.py", digits, iters=2)
    stock = train(config, "--amp", "--work-dir", "stock", status=1)
    ours = train(config, "--amp", *options(), status=1)
    said = [done.stderr.strip().splitlines()[-1] for done in (stock, ours)]
    assert said[0] == said[1]
    assert "is only available training on gpu" in said[1]
    work_dir = tmp_path / "work_dirs" / "c"
    assert not (work_dir / "rollback").exists()
    assert not (work_dir / "last_checkpoint").exists()
    # And what to type here instead is in the docs.
    page = (helpers.ROOT / "docs/en/symptoms.md").read_text()
    (row,) = [line for line in page.splitlines() if "only available training" in line]
    assert REHEARSED in row
