"""What the hooks cost, measured beside what a user could take instead.

    python scripts/bench_overhead.py                        # both detectors, all rows
    python scripts/bench_overhead.py --detectors retinanet --rows monitors norm_items

Every row is a runner of its own, with MMEngine's default hooks and those of the row.
All rows run in one process, on the same weights, the same optimizer and the same batch
in memory. Blocks of a few iterations without and with the row's hooks alternate, the
order swapped each time, and the rows take turns.

Time, one table per detector:
    without, with    fastest iteration, in ms: other programs only ever add to it
                     (CPU: time of the process, GPU: elapsed)
    ratio            of these two
    paired ratio     median over the pairs of blocks, with its quartiles
    added ms         median of the differences
Per iteration, what the row adds to a run without hooks, from iterations of their own:
    host syncs       waits of the host for the device. GPU: the driver's synchronizing
                     calls; CPU: operations that would wait on a GPU
    copies           device-to-host copies. GPU: the profiler's; CPU: values read
    recorder         copies that the recorder of amp_hooks says it made
    collectives      c10d operations, with a process group of two simulated ranks
    launches         GPU: kernels launched; CPU: operators for which a GPU would be
                     given one, and a foreach operator as often as it would
    MiB held         of tensors between two iterations, in any memory: RollbackHook's
                     first snapshot, copies of buffers
The run's age: the same at iteration 100 and at 1,000,000, with the hooks' own memory
as full as in such a run. A stock run slows
down with age as well, because MMEngine copies its log history in every iteration: that
is left out of the first two rows and in the third.

Of StabilityPanelHook, what each thing that it writes takes.

What a hook does at longer intervals (GradNormMonitorHook's log line every 500
iterations, RollbackHook's snapshots) is not in the numbers.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
from statistics import median, quantiles

import torch
from bench_counts import KEYS, count, held_bytes
from bench_panel import publishing
from bench_rivals import rows
from bench_runs import DETECTORS, Live, build_batch, build_model, prepare

from amp_hooks.engine.command_line import markdown_table

OLD = 1_000_000
TIMES = ("without", "with", "ratio", "paired ratio", "added ms")


def alternate(pairs, args):
    """Seconds of ``{key: (without, with)}``, as ``{key: (blocks, blocks)}``."""
    blocks = {key: ([], []) for key in pairs}
    for block in range(args.blocks):
        for key, pair in pairs.items():
            for i in (0, 1) if block % 2 == 0 else (1, 0):
                blocks[key][i].append(pair[i].run(args.block_iters))
    return blocks


def timing(blocks):
    """Fastest without, fastest with, and the cells of a row."""
    without, with_ = ([t for block in side for t in block] for side in blocks)
    paired = [sum(b) / sum(a) for a, b in zip(*blocks)]
    low, _, high = (
        quantiles(paired, n=4, method="inclusive") if paired[1:] else paired * 3
    )
    a, b = min(without), min(with_)
    added = median(sum(y) / len(y) - sum(x) / len(x) for x, y in zip(*blocks))
    spread = f"{median(paired):.3f} ({low:.3f} to {high:.3f})"
    cells = [f"{a * 1e3:.4g}", f"{b * 1e3:.4g}", f"{b / a:.3f}", spread]
    return a, b, [*cells, f"{added * 1e3:.2f}"]


def added(counts, base):
    """The cells of a row of counts."""
    return [f"{round(counts[key] - base[key], 2):g}" for key in KEYS]


def bench(detector, args):
    """Measure one detector and print its tables."""
    model = build_model(detector, args)
    batch = build_batch(detector, args)
    base = Live(model, [], batch, args)
    optimizer = base.runner.optim_wrapper.optimizer
    known = rows()
    lives, held = {}, {}
    for key in args.rows:
        before = held_bytes()
        lives[key] = Live(model, known[key][1], batch, args, optimizer)
        held[key] = held_bytes() - before
    # Else each collection would walk the objects of all rows, whichever row it is in.
    gc.collect()
    gc.freeze()
    blocks = alternate({key: (base, live) for key, live in lives.items()}, args)
    name = DETECTORS[detector][0] + (" made tiny" if args.tiny else "")
    print(f"\n### {name}\n\n{header(args)}\n")
    table = [["time of an iteration", *TIMES]]
    table += [[known[key][0], *timing(blocks[key])[2]] for key in args.rows]
    print(markdown_table(table), flush=True)

    stock = count(base, args.count_iters)
    table = [["added per iteration", *KEYS, "MiB held"]]
    for key, live in lives.items():
        counts = added(count(live, args.count_iters), stock)
        table.append([known[key][0], *counts, f"{held[key] / 2**20:.2f}"])
    table.append(["(without hooks)", *added(stock, dict.fromkeys(KEYS, 0)), ""])
    print("\n" + markdown_table(table), flush=True)
    losses = {live.loss for live in (base, *lives.values())}
    same = "yes" if len(losses) == 1 else f"no: {sorted(losses)}"
    print(f"\nSame loss in every row: {same}", flush=True)
    lives.clear()
    print("\n" + markdown_table(publishing(model, batch, optimizer, args)), flush=True)
    age(model, batch, optimizer, args)
    gc.unfreeze()


def age(model, batch, optimizer, args):
    """A young run beside an old one."""
    hooks = rows()["monitors"][1]
    pairs = {
        label: tuple(Live(model, h, batch, args, optimizer) for h in ([], hooks))
        for label in ("100", f"{OLD:,}", f"{OLD:,}, MMEngine's history full too")
    }
    young, old, oldest = pairs
    mmengines = set(pairs[young][0].runner.message_hub.log_scalars)
    for label, iteration, leave in (
        (young, 100, mmengines),
        (old, OLD, mmengines),
        (oldest, OLD, ()),
    ):
        for live in pairs[label]:
            live.grow_to(iteration, leave)
    blocks = alternate(pairs, args)
    table = [["all monitors at iteration", *TIMES, *KEYS]]
    fastest = {}
    for label, pair in pairs.items():
        without, with_, cells = timing(blocks[label])
        fastest[label] = without, with_
        counts = [count(live, args.count_iters) for live in pair]
        table.append([label, *cells, *added(counts[1], counts[0])])
    ratios = [b / a for a, b in zip(fastest[young], fastest[old])]
    print("\n" + markdown_table(table))
    print(
        f"\nIteration {old} over iteration {young}: {ratios[0]:.3f} without hooks, "
        f"{ratios[1]:.3f} with all monitors",
        flush=True,
    )


def header(args):
    """Under which conditions this was measured."""
    device = "CPU"
    if args.device == "cuda":
        device = torch.cuda.get_device_name()
    return (
        f"{device}, torch {torch.__version__}, {torch.get_num_threads()} threads, "
        f"{args.size} x {args.size} pixels, batch {args.batch_size}, {args.precision}, "
        f"{args.blocks} pairs of blocks of {args.block_iters} iterations"
    )


def parse():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    add = parser.add_argument
    add("--detectors", nargs="+", choices=DETECTORS, default=list(DETECTORS))
    add("--rows", nargs="+", choices=rows(), default=list(rows()))
    add("--device", choices=["auto", "cpu", "cuda"], default="auto")
    add("--precision", choices=["float32", "bfloat16", "float16"])
    add("--size", type=int, default=320, help="pixels (default: 320)")
    add("--batch-size", type=int, default=2)
    add("--blocks", type=int, default=5, help="pairs of blocks per row (default: 5)")
    add("--block-iters", type=int, default=1, help="iterations a block (default: 1)")
    add("--count-iters", type=int, default=1, help="iterations counted (default: 1)")
    add("--warmup", type=int, default=1, help="first iterations of each row, untimed")
    add("--threads", type=int, help="default: torch's own choice")
    add("--tiny", action="store_true", help="a narrow R18, to try the script")
    args = parser.parse_args()
    for name in (
        "size",
        "batch_size",
        "blocks",
        "block_iters",
        "count_iters",
        "warmup",
    ):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.precision is None:
        args.precision = "float16" if args.device == "cuda" else "float32"
    on_cpu = args.device == "cpu" and args.precision == "bfloat16"
    if on_cpu and "faster_rcnn" in args.detectors:
        parser.error("mmcv has no bfloat16 NMS on a CPU: take --detectors retinanet")
    return args


def main():
    """Measure and print."""
    args = parse()
    prepare(args)
    with tempfile.TemporaryDirectory() as args.work_dir:
        for detector in args.detectors:
            bench(detector, args)


if __name__ == "__main__":
    main()
