"""Makes docs/en/cost.md of the benchmarks: what the hooks cost, side by side.

    python scripts/cost_page.py                  # half an hour on a quiet machine
    python scripts/cost_page.py --tiny --out x   # minutes, to try the script

What each benchmark prints is kept in --kept and not run again while it is there, so
that it can be interrupted.
"""

from __future__ import annotations

import argparse
import os.path as osp
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
RIVALS = "check_loss norm_items anomaly underflow"
# Which benchmark, how it is run, and in short if it is only tried.
RUNS = {
    "classifier": (
        "bench_overhead.py",
        "--detectors classifier --blocks 20 --block-iters 25 --warmup 10",
        "--blocks 1 --block-iters 2 --warmup 2",
    ),
    "detectors": (
        "bench_overhead.py",
        f"--detectors retinanet faster_rcnn --blocks 8 --rows nothing monitors guard "
        f"suite {RIVALS}",
        "--tiny --size 64 --blocks 1",
    ),
    "snapshots": (
        "bench_snapshots.py",
        "--batch-size 2 --rounds 5",
        "--tiny --size 64 --rounds 1",
    ),
    "start": (
        "bench_start.py",
        "--detectors retinanet --rounds 2",
        "--tiny --size 64 --rounds 1",
    ),
}

PAGE = """# What it costs: every number

Made by `python scripts/cost_page.py`; the heading of each table says on what. Every
number is that of a run with our hooks beside the same run without them, in one process,
on the same weights and batch, in turn. *Nothing, again* shows the noise, which is large
where the machine has other work to do. Not yet measured on a GPU: there
`scripts/gpu_check.sh` measures it.

- **launches**: operators for which a GPU would be given a kernel. **host syncs**: where
  the host of a GPU would wait. **copies**: values brought to the host. **recorder**:
  how many of these our recorder made. Exact; those of `StabilityHook` are tests, at
  iteration 10 and at iteration 1,000,000.
- **paired ratio**: median over pairs of blocks, with its quartiles; **added ms**:
  median of the differences.
- **MiB held**: of tensors between two iterations. That of `RollbackHook` is its first
  snapshot, in host memory.

## An iteration that is nothing but launches

A model so small that no operator takes time: what a hook costs here is what it costs
the host in an iteration of any model. On a GPU that hides behind the kernels, unless
the model itself is bound by its launches. Each member alone pays for what all of them
share: seeing loss, gradients and step, and one copy to the host.
<!-- classifier -->
{classifier}
## An iteration of a detector
<!-- detectors -->
{detectors}
## Snapshots, rollbacks, checkpoints

*guarded* is what CheckpointHook's own saving takes under `RollbackHook`: the state is
seen to be finite, the file is flushed, read back and compared with its checksums, and
only then does it get its name. That stays on the training thread, because hooks and
scripts look for the file when the save returns; there is one save an epoch.
<!-- snapshots -->
{snapshots}
## Once in a run
<!-- start -->
{start}"""


def main():
    """Run what is missing and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    add = parser.add_argument
    add("--out", default=osp.join(HERE.parent, "docs", "en", "cost.md"))
    add("--kept", default="work_dirs/cost", help="what the benchmarks have printed")
    add("--tiny", action="store_true", help="narrow models, to try the script")
    args = parser.parse_args()
    kept = Path(args.kept)
    kept.mkdir(parents=True, exist_ok=True)
    printed = {}
    for name, (script, options, short) in RUNS.items():
        path = kept / f"{name}.md"
        if not path.exists():
            # Of an option that is given twice the last one counts.
            options += f" --threads 1 {short}" if args.tiny else " --threads 1"
            print(f"{script} {options}", file=sys.stderr, flush=True)
            command = [sys.executable, str(HERE / script), *options.split()]
            done = subprocess.run(
                command, stdout=subprocess.PIPE, text=True, check=True
            )
            path.write_text(done.stdout)
        printed[name] = path.read_text()
    Path(args.out).write_text(PAGE.format(**printed))
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
