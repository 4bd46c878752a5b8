"""What a snapshot and a rollback cost, beside an iteration and MMEngine's checkpoint.

    python scripts/bench_snapshots.py                  # Faster R-CNN R50-FPN, with EMA
    python scripts/bench_snapshots.py --device cuda --pin-memory

A run with EMAHook and RollbackHook, stopped between iterations, so that each part can
be timed by itself, in turn (elapsed time, median of the rounds; a round is an
iteration, a snapshot, a rollback, and a checkpoint as CheckpointHook saves it):
    iteration           one training iteration
    snapshot            what training waits for: finite scan, copy to host memory
    in the background   writing, flushing, reading back and comparing the file
    rollback            restoring the state from host memory
    MMEngine checkpoint what CheckpointHook saves, for comparison
    guarded             the same as RollbackHook has it saved: seen to be finite,
                        flushed, read back, and only then given its name
and the bytes that the snapshots hold in memory and on disk, at each round.
"""

from __future__ import annotations

import argparse
import glob
import os
import os.path as osp
import tempfile
import time
from functools import partial
from statistics import median

import torch
from bench_runs import DETECTORS, Live, build_batch, build_model, prepare

from amp_hooks.engine.command_line import markdown_table
from amp_hooks.rollback.host_copy import host_bytes


def parse():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    add = parser.add_argument
    add("--detector", choices=DETECTORS, default="faster_rcnn")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto")
    add("--precision", choices=["float32", "bfloat16", "float16"], default="float32")
    add("--size", type=int, default=320, help="pixels (default: 320)")
    add("--batch-size", type=int, default=2)
    add("--rounds", type=int, default=5)
    add("--warmup", type=int, default=1, help="first iterations, untimed")
    add("--threads", type=int, help="default: torch's own choice")
    add("--pin-memory", action="store_true")
    add("--tiny", action="store_true", help="a narrow R18, to try the script")
    args = parser.parse_args()
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    return args


class Stopwatch:
    """Elapsed seconds of what is called, by name."""

    def __init__(self, device):
        self.device, self.times = device, {}

    def __call__(self, name, call):
        """Call it and keep the time."""
        self._wait()
        start = time.perf_counter()
        result = call()
        self._wait()
        self.times.setdefault(name, []).append(time.perf_counter() - start)
        return result

    def _wait(self):
        if self.device == "cuda":
            torch.cuda.synchronize()


def megabytes(number):
    """In MiB."""
    return f"{number / 2**20:.0f}"


def main():
    """Measure and print."""
    args = parse()
    prepare(args)
    batch = build_batch(args.detector, args)
    hooks = [
        dict(type="EMAHook"),
        dict(
            type="amp_hooks.RollbackHook",
            interval=10**9,
            probation=0,
            pin_memory=args.pin_memory,
        ),
    ]
    with tempfile.TemporaryDirectory() as args.work_dir:
        live = Live(build_model(args.detector, args), hooks, batch, args)
        measure(live, args)


def take(hook, runner):
    """A snapshot that is due, as between two iterations."""
    hook._schedule.make_due()
    hook._schedule.take_what_is_due(
        runner, hook._snapshots, resumed=False, calm=True, ignore=hook._ignore
    )


def measure(live, args):
    """Time every part in turn."""
    runner, watch = live.runner, Stopwatch(args.device)
    (hook,) = [h for h in runner.hooks if type(h).__name__ == "RollbackHook"]
    folder = osp.join(args.work_dir, "rollback")
    meta = dict(epoch=0, iter=runner.iter)
    (theirs,) = [h for h in runner.hooks if type(h).__name__ == "CheckpointHook"]
    guarded = partial(theirs._save_checkpoint_with_step, meta=meta)
    unguarded = partial(type(theirs)._save_checkpoint_with_step, theirs, meta=meta)
    saves = {
        "MMEngine checkpoint": partial(unguarded, runner, runner.iter),
        "guarded": partial(guarded, runner, runner.iter),
    }
    held = []
    hook._snapshots.finish()
    for number in range(args.rounds):
        watch("iteration", lambda: live.run(1))
        watch("snapshot", lambda: take(hook, runner))
        watch("in the background", hook._snapshots.finish)
        target = hook._ring.entries[-1].item
        watch("rollback", partial(target.restore, runner))
        for name, save in saves.items():
            watch(name, save)
            for path in glob.glob(osp.join(args.work_dir, "iter_*.pth")):
                os.remove(path)
        on_disk = sum(os.path.getsize(osp.join(folder, f)) for f in os.listdir(folder))
        in_memory = host_bytes([vars(entry.item) for entry in hook._ring.entries])
        held.append([str(number + 1), megabytes(in_memory), megabytes(on_disk)])
    per_iteration = median(watch.times["iteration"])
    name = DETECTORS[args.detector][0] + (" made tiny" if args.tiny else "")
    device = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    print(
        f"\n### {name}, EMA, {device}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads, {args.size} x {args.size} pixels, batch "
        f"{args.batch_size}, {args.precision}, {args.rounds} rounds\n"
    )
    table = [["part", "ms", "ratio to an iteration"]]
    for part, times in watch.times.items():
        middle = median(times)
        table.append([part, f"{middle * 1e3:.1f}", f"{middle / per_iteration:.2f}"])
    print(markdown_table(table))
    print("\n" + markdown_table([["round", "MiB in memory", "MiB on disk"], *held]))


if __name__ == "__main__":
    main()
