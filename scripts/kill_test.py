"""Kill a training run again and again: can it always be resumed?

    python scripts/kill_test.py --kills 200

A small RetinaNet trains on digits with RollbackHook, in processes that are killed with
SIGKILL: half of them while a checkpoint is being written, the others at random moments.
Each next process resumes from the same work_dir. After every kill the newest checkpoint
must be whole and finite, and no more than two snapshot intervals older than the
iteration in which the process died; after the last one the run must finish. Prints a
line for each kill and exits with status 1 at the first that breaks the promise.
"""

from __future__ import annotations

import argparse
import glob
import os
import os.path as osp
import random
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from typing import Any

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from amp_hooks.engine.safe_load import allow_mmengine_checkpoints
from amp_hooks.rollback.checkpoint_file import damage, read_header

ROOT = osp.dirname(osp.dirname(osp.abspath(__file__)))
INTERVAL = 8
PROGRESS = "progress.txt"


class ProgressHook(Hook):
    """Leaves the number of the iteration that begins where its killer can read it."""

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        """Write it."""
        write_progress(runner.work_dir, runner.iter)


def write_progress(work_dir: str, number: int) -> None:
    """In one go: a pipe or a lock could be left broken."""
    fd = os.open(osp.join(work_dir, PROGRESS), os.O_WRONLY | os.O_CREAT)
    os.pwrite(fd, b"%012d" % number, 0)
    os.close(fd)


def make_config(data: str, work_dir: str) -> Config:
    """A small detector with our hooks and MMEngine's own checkpoints beside them."""
    path = osp.join(ROOT, "configs/digits/retinanet_r18_fpn_fp16_stability.py")
    cfg = Config.fromfile(path)
    cfg.work_dir, cfg.log_level, cfg.resume = work_dir, "WARNING", True
    cfg.model.backbone.base_channels = 8
    cfg.model.neck.in_channels = [8, 16, 32, 64]
    cfg.train_dataloader.batch_size = 2
    cfg.train_dataloader.dataset.data_root = data
    for step in cfg.train_dataloader.dataset.pipeline:
        if step.type == "Resize":
            step.scale = (64, 64)
    cfg.train_dataloader.sampler = dict(type="InfiniteSampler", shuffle=True)
    cfg.train_cfg = dict(type="IterBasedTrainLoop", max_iters=10**6)
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.param_scheduler = [dict(type="ConstantLR", factor=1.0, by_epoch=False)]
    cfg.log_processor = dict(type="LogProcessor", by_epoch=False)
    cfg.default_hooks.checkpoint = dict(
        type="CheckpointHook", by_epoch=False, interval=INTERVAL + 5, max_keep_ckpts=1
    )
    cfg.vis_backends = cfg.visualizer.vis_backends = [dict(type="LocalVisBackend")]
    cfg.custom_hooks = [
        dict(type="amp_hooks.StepGuardHook"),
        dict(type="amp_hooks.RollbackHook", interval=INTERVAL, probation=INTERVAL // 2),
    ]
    return cfg


def train(cfg: Config, log: str, last: int | None = None) -> int:
    """Start to train in a child process; returns its number."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        if last is not None:
            cfg.train_cfg.max_iters = last
        runner = Runner.from_cfg(cfg)
        runner.register_hook(ProgressHook())
        runner.train()
        status = 0
    except BaseException as e:
        print(f"{type(e).__name__}: {e}", flush=True)
    finally:
        os._exit(status)


def iteration(work_dir: str) -> int:
    """The iteration that the process is, or was, in."""
    path = osp.join(work_dir, PROGRESS)
    if not osp.exists(path):
        return 0
    with open(path) as f:
        return int(f.read() or 0)


def wait_until(when: Any, child: int, seconds: float) -> bool:
    """Wait until ``when()``; False if that takes too long or the child has ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if when():
            return True
        if os.waitpid(child, os.WNOHANG)[0]:
            return False
        time.sleep(0.0005)
    return True


def reach(work_dir: str, child: int, until: int | None) -> bool:
    """Wait for an iteration; False if the process has ended by itself.

    Args:
        work_dir: Of the run.
        child: The process.
        until: The iteration; ``None``: any in which a checkpoint is being written.
    """
    unfinished = f"{work_dir}/**/.*.tmp"
    before = set(glob.glob(unfinished, recursive=True, include_hidden=True))

    def is_time() -> bool:
        if until is not None:
            return iteration(work_dir) >= until
        now = glob.glob(unfinished, recursive=True, include_hidden=True)
        return not before.issuperset(now)

    return wait_until(is_time, child, 300)


def newest(work_dir: str) -> tuple[int, str, str | None]:
    """Iteration, path and damage of the newest checkpoint that has its name."""
    found = glob.glob(f"{work_dir}/rollback/iter_*.pth")
    found += glob.glob(f"{work_dir}/*.pth")
    headers = [(read_header(path), path) for path in found]
    for header, path in headers:
        if header is None:
            return 0, path, damage(path)
    by_age = sorted((header.iter, path) for header, path in headers)
    return (*by_age[-1], damage(by_age[-1][1])) if by_age else (0, "", None)


def main() -> int:
    """Kill, look, resume, and at last let it finish."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    allow_mmengine_checkpoints()
    dice = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        data = osp.join(folder, "digits")
        command = [sys.executable, osp.join(ROOT, "scripts/make_digits.py")]
        command += ["--out", data, "--size", "64", "--train", "24", "--val", "2"]
        subprocess.run(command, check=True, capture_output=True)
        work_dir, log = osp.join(folder, "work"), osp.join(folder, "log.txt")
        os.makedirs(work_dir)
        cfg = make_config(data, work_dir)
        for kill in range(args.kills):
            begun = newest(work_dir)[0]
            write_progress(work_dir, begun)
            child = train(cfg, log)
            in_write = dice.random() < 0.5
            life = dice.randint(1, 5 * INTERVAL // 2)
            alive = reach(work_dir, child, None if in_write else begun + life)
            if alive:
                time.sleep(dice.uniform(0, 0.05))
            if alive:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
            at = iteration(work_dir)
            found, path, bad = newest(work_dir)
            too_old = at - found > 2 * INTERVAL
            print(
                f"kill {kill + 1} of {args.kills}: in iteration {at}, "
                f"{'while writing' if in_write else 'at random'}; newest checkpoint "
                f"{osp.relpath(path, work_dir) if path else 'none'}",
                flush=True,
            )
            if not alive or bad or too_old:
                why = bad or (
                    "too old" if too_old else "the process ended by itself; see below"
                )
                with open(log) as f:
                    print(f"FAILED: {why}\n{f.read()[-3000:]}")
                return 1
        last = iteration(work_dir) + 2 * INTERVAL
        child = train(cfg, log, last)
        _, status = os.waitpid(child, 0)
        with open(log) as f:
            text = f.read()
        if status or iteration(work_dir) != last - 1:
            print(f"FAILED to finish at iteration {last}\n{text[-3000:]}")
            return 1
        passed_over = text.count("passed over")
        print(
            f"{args.kills} kills, {last} iterations, finished; {passed_over} damaged "
            "checkpoints passed over on the way"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
