"""What StabilityHook adds to the start and the end of a run, once.

    python scripts/bench_start.py                      # both detectors

Whole runs of three iterations, from Runner.train to its return, each in turn without
hooks, with StabilityHook but no pre-flight, and with all of it; elapsed seconds, the
median of the rounds:
    start and end       the search for the classifier layers, the first snapshot and its
                        file, waiting for that at the end, the ledger
    pre-flight          one forward and backward pass of the first batch, and a look at
                        every ground-truth box that has been loaded
and their share of a run of 1000 iterations.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from statistics import median

from bench_runs import DETECTORS, build_batch, build_model, build_runner, prepare

from amp_hooks.engine.command_line import markdown_table

ITERATIONS = 3
OF = 1000
RUNS = {
    "without hooks": [],
    "start and end": [dict(type="amp_hooks.StabilityHook", preflight=None)],
    "pre-flight": [dict(type="amp_hooks.StabilityHook")],
}


def measure(detector, args):
    """Print the table of one detector."""
    seconds = {name: [] for name in RUNS}
    batch = build_batch(detector, args)
    for number in range(args.rounds + 1):
        for name, hooks in RUNS.items():
            model = build_model(detector, args)
            with tempfile.TemporaryDirectory() as args.work_dir:
                loader = [batch] * ITERATIONS
                runner = build_runner(model, hooks, loader, args, ITERATIONS)
                start = time.perf_counter()
                runner.train()
                if number:  # the first ones import what the others find
                    seconds[name].append(time.perf_counter() - start)
    times = [median(of_run) for of_run in seconds.values()]
    whole = times[0] / ITERATIONS * OF
    print(f"\n### {DETECTORS[detector][0]}\n")
    table = [["once in a run", "s", f"share of {OF} iterations"]]
    for name, before, after in zip(list(RUNS)[1:], times, times[1:]):
        added = after - before
        table.append([name, f"{added:.2f}", f"{added / whole:.2%}"])
    print(markdown_table(table), flush=True)


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    add = parser.add_argument
    add("--detectors", nargs="+", choices=DETECTORS, default=list(DETECTORS)[1:])
    add("--device", choices=["cpu", "cuda"], default="cpu")
    add("--precision", choices=["float32", "bfloat16", "float16"], default="float32")
    add("--size", type=int, default=320, help="pixels (default: 320)")
    add("--batch-size", type=int, default=2)
    add("--rounds", type=int, default=3)
    add("--threads", type=int, help="default: torch's own choice")
    add("--tiny", action="store_true", help="a narrow R18, to try the script")
    args = parser.parse_args()
    prepare(args)
    for detector in args.detectors:
        measure(detector, args)


if __name__ == "__main__":
    main()
