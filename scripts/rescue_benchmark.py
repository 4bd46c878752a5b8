"""Faults x detectors x policies: which training runs are saved, and at what price?

    python scripts/rescue_benchmark.py --quick   # at most 15 minutes on 2 cores
    python scripts/rescue_benchmark.py           # everything, an hour; can be resumed

Every cell is a training run in a process of its own, in FP16 with a dynamic loss scale
and EMA, on the same digits in the same order; without a GPU, FP16 is rehearsed
(amp_hooks.CpuAmpOptimWrapper). All begin with the same weights, as one fine-tunes: each
detector is first trained in FP32 on other digits. They go on with SGD, at a learning
rate at which the detector does well.

Policies: nothing; mmdet's CheckInvalidLossHook; going back to the last epoch, much as
Ultralytics' trainer does; HeadClampHook alone, always on; StabilityHook, with its
intervals a twentieth of their defaults. Of the faults three arise by themselves, and
six are injected at 60% of the run.

What ruins a model with finite losses is no matter of precision, and no reason for a
rollback: such runs are shown, and nothing is promised of them.

Cells that are done, by --quick as well, are kept in --out and run again only if their
config or code has changed, or what they begin with. In the end there are rescue.json,
rescue.md, which explains its columns, and rescue.png.

Exit status 1 if a run of amp_hooks ended with an error or below 0.95 of the clean FP32
run's mAP, but for those ruined with finite losses, or if it intervened in a clean run.
"""

from __future__ import annotations

import argparse
import json
import os
import os.path as osp
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from apart import one_thread_each, run_apart
from rescue_cells import (
    DETECTORS,
    FAULTS,
    POLICIES,
    PRETRAIN,
    QUICK_DETECTORS,
    QUICK_FAULTS,
    SIZE,
    Cell,
    Length,
    cells,
    fingerprint,
    machine,
    pretraining,
)
from rescue_run import train
from rescue_tables import failures, markdown, plot
from small_detectors import ROOT

from amp_hooks.engine.files import write_text


def main() -> None:
    """Run what is missing, then write the results."""
    args = parse_args()
    one_thread_each()
    out = Path(args.out)
    length = Length(args.images, args.epochs, args.pretrain_epochs)
    prepare(out, length)
    wanted = cells(args.detectors, args.faults, args.policies)
    run_missing([*map(pretraining, args.detectors), *wanted], length, out, args.jobs)
    results = [json.loads(result_path(out, c).read_text()) for c in wanted]
    about = machine()
    everything = dict(about=about, length=asdict(length), results=results)
    write_text(str(out / "rescue.json"), json.dumps(everything, indent=1))
    page = markdown(results, about)
    write_text(str(out / "rescue.md"), page)
    plot(results, out / "rescue.png")
    print(page)
    broken = failures(results)
    for line in broken:
        print(f"NOT SHOWN: {line}", file=sys.stderr)
    sys.exit(bool(broken))


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="a small part of it")
    parser.add_argument("--out", default="work_dirs/rescue")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--detectors", nargs="+", choices=DETECTORS)
    parser.add_argument("--faults", nargs="*", choices=FAULTS)
    parser.add_argument("--policies", nargs="+", choices=POLICIES)
    parser.add_argument("--images", type=int, help="for training")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--pretrain-epochs", type=int)
    quick = parser.parse_known_args()[0].quick
    length = Length()
    parser.set_defaults(
        detectors=QUICK_DETECTORS if quick else list(DETECTORS),
        faults=QUICK_FAULTS if quick else list(FAULTS),
        policies=list(POLICIES),
        images=length.images,
        epochs=length.epochs,
        pretrain_epochs=length.pretrain,
    )
    return parser.parse_args()


def prepare(out: Path, length: Length) -> None:
    """Make the data sets; refuse a folder with results of other runs."""
    (out / "cells").mkdir(parents=True, exist_ok=True)
    about = out / "length.json"
    if about.exists() and json.loads(about.read_text()) != asdict(length):
        sys.exit(
            f"error: {out} holds results of {about.read_text()}, not of "
            f"{asdict(length)}. Give another folder with --out, or remove this one."
        )
    for seed, name in enumerate(("digits", "digits-other")):
        make = [sys.executable, osp.join(ROOT, "scripts/make_digits.py")]
        sizes = ["--size", str(SIZE), "--train", str(length.images), "--val", "150"]
        where = ["--out", str(out / name), "--seed", str(seed)]
        subprocess.run([*make, *sizes, *where], check=True, capture_output=True)
    write_text(str(about), json.dumps(asdict(length)))


def forget_outdated(wanted: list[Cell], length: Length, out: Path) -> list[Cell]:
    """Remove results of other configs or beginnings; returns cells without a result."""
    for cell in wanted:
        path = result_path(out, cell)
        first = cell.fault == PRETRAIN
        whole = path.exists() and (not first or path.with_suffix(".pth").exists())
        known = json.loads(path.read_text()).get("config") if whole else None
        if known == fingerprint(cell, length):
            continue
        path.unlink(missing_ok=True)
        if first:
            for other in path.parent.glob(f"{cell.detector}.*.json"):
                other.unlink()
    return [c for c in wanted if not result_path(out, c).exists()]


def run_missing(wanted: list[Cell], length: Length, out: Path, jobs: int) -> None:
    """Run the cells that have no result, some side by side."""
    missing = forget_outdated(wanted, length, out)
    print(f"{len(wanted)} runs, {len(missing)} of them to be made", flush=True)
    first = [c for c in missing if c.fault == PRETRAIN]
    then = [c for c in missing if c.fault != PRETRAIN]
    began, done = time.time(), 0
    with ThreadPoolExecutor(jobs) as pool:
        for batch in (first, then):
            for cell in pool.map(lambda c: start(c, length, out), batch):
                done += 1
                minutes = (time.time() - began) / 60
                print(
                    f"[{done}/{len(missing)}, {minutes:.0f} min] {tell(out, cell)}",
                    flush=True,
                )


def start(cell: Cell, length: Length, out: Path) -> Cell:
    """Run a cell in a process of its own.

    Raises:
        RuntimeError: It ended without a result, which is a fault of this script.
    """
    path = result_path(out, cell)
    run_apart(run_cell, cell, length, out, result=path)
    return cell


def run_cell(cell: Cell, length: Length, out: Path) -> None:
    """Train, and write the result."""
    about = asdict(cell) | dict(config=fingerprint(cell, length))
    result = about | train(cell, length, out)
    write_text(str(result_path(out, cell)), json.dumps(result, indent=1))


def result_path(out: Path, cell: Cell) -> Path:
    """Where the result of a cell is."""
    return out / "cells" / f"{cell.name}.json"


def tell(out: Path, cell: Cell) -> str:
    """A cell's result in a line."""
    result = json.loads(result_path(out, cell).read_text())
    ended = "" if result["finished"] else f", ended: {result['error']}"
    return f"{cell.name}: mAP {result['map']}, {result['lost']} lost{ended}"


if __name__ == "__main__":
    main()
