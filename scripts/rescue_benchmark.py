"""Faults x detectors x policies: which training runs are saved, and at what price?

    python scripts/rescue_benchmark.py --quick   # at most 15 minutes on 2 cores
    python scripts/rescue_benchmark.py           # everything, hours; can be resumed

Every cell is a training run in a process of its own, with EMA and an evaluation after
every epoch, on the same digits; the seed is that of their order, of the augmentation
and of the boxes that are sampled. All begin with the same weights, as one fine-tunes:
each detector is first trained in FP32 on other digits. They go on with SGD, at a
learning rate at which the detector does well; in FP16 with a dynamic loss scale,
rehearsed if there is no GPU (amp_hooks.CpuAmpOptimWrapper), in BF16 and in FP32.

Policies: nothing and StabilityHook, its intervals a twentieth of their defaults, with
three seeds. With one seed, in FP16: mmdet's CheckInvalidLossHook; going back to the
last epoch, much as Ultralytics' trainer does; HeadClampHook alone, always on. And with
default intervals, in runs of 5175 iterations, nothing and StabilityHook.

Of the faults three arise by themselves, and eight are injected at 60% of the run. Those
that need no loss scale are tried in every precision, in BF16 but for two-stage
detectors, for which mmcv has no NMS there on a CPU.

Cells that are done, by --quick as well, are kept in --out and run again only if their
config or code has changed, or what they begin with; so are those of --known, such as
docs/rescue.json. In the end there are rescue.json, rescue.md, which explains its
columns, and rescue.png. --done makes them of the cells that there are.

Exit status 1 if a run of amp_hooks ended with an error or below 0.95 of the clean runs'
mAP, but for those that pre-flight had named and the report calls lost, or if it
intervened in a clean run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import os.path as osp
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields
from pathlib import Path

import torch
from apart import one_thread_each, run_apart
from rescue_cells import (
    FAULTS,
    POLICIES,
    PRECISIONS,
    PRETRAIN,
    QUICK_DETECTORS,
    QUICK_FAULTS,
    SEEDS,
    SIZE,
    Cell,
    Length,
    cells,
    fingerprint,
    machine,
    pretraining,
)
from rescue_detectors import DETECTORS
from rescue_picture import plot
from rescue_run import train
from rescue_tables import comparable, failures, markdown
from small_detectors import ROOT

from amp_hooks.engine.files import write_text


def main() -> None:
    """Run what is missing, then write the results."""
    args = parse_args()
    one_thread_each()
    out = Path(args.out)
    length = Length(args.images, args.epochs, args.pretrain_epochs)
    prepare(out, length)
    if args.known:
        take(Path(args.known), out)
    if "nothing" not in args.policies:
        sys.exit("error: --policies needs 'nothing', which others are compared with")
    wanted = cells(
        args.detectors, args.faults, args.policies, args.precisions, args.seeds
    )
    if args.done:
        wanted = [c for c in wanted if is_done(c, length, out)]
    else:
        run_missing(wanted, length, out, args.jobs)
    results = comparable([json.loads(result_path(out, c).read_text()) for c in wanted])
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
    parser.add_argument("--known", help="a rescue.json with cells that are done")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--detectors", nargs="+", choices=DETECTORS)
    parser.add_argument("--faults", nargs="*", choices=FAULTS)
    parser.add_argument("--policies", nargs="+", choices=POLICIES)
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS)
    parser.add_argument("--seeds", nargs="+", type=int)
    parser.add_argument(
        "--done", action="store_true", help="run nothing, write what there is"
    )
    parser.add_argument("--images", type=int, help="for training")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--pretrain-epochs", type=int)
    quick = parser.parse_known_args()[0].quick
    length = Length()
    parser.set_defaults(
        detectors=QUICK_DETECTORS if quick else list(DETECTORS),
        faults=QUICK_FAULTS if quick else list(FAULTS),
        policies=[p for p in POLICIES if p != "defaults"] if quick else list(POLICIES),
        precisions=["float16"] if quick else list(PRECISIONS),
        seeds=[0] if quick else list(SEEDS),
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
        number = ["--train", str(length.images), "--val", str(length.images // 2)]
        sizes = ["--size", str(SIZE), *number]
        where = ["--out", str(out / name), "--seed", str(seed)]
        subprocess.run([*make, *sizes, *where], check=True, capture_output=True)
    write_text(str(about), json.dumps(asdict(length)))


def take(known: Path, out: Path) -> None:
    """Put the results of a rescue.json, if not of its first form, beside others."""
    names = [field.name for field in fields(Cell)]
    for result in json.loads(known.read_text())["results"]:
        if not result.keys() >= set(names):
            continue
        cell = Cell(**{name: result[name] for name in names})
        if not (path := result_path(out, cell)).exists():
            write_text(str(path), json.dumps(result, indent=1))


def is_done(cell: Cell, length: Length, out: Path) -> bool:
    """Whether there is a result of this very run."""
    path = result_path(out, cell)
    if cell.fault == PRETRAIN and not path.with_suffix(".pth").exists():
        return False
    if not path.exists():
        return False
    known = json.loads(path.read_text()).get("config")
    return bool(known == fingerprint(cell, length))


def without_result(wanted: list[Cell], length: Length, out: Path) -> list[Cell]:
    """Cells that are to be run; results of other configs or code are removed."""
    missing = [c for c in wanted if not is_done(c, length, out)]
    for cell in missing:
        result_path(out, cell).unlink(missing_ok=True)
    return missing


def run_missing(wanted: list[Cell], length: Length, out: Path, jobs: int) -> None:
    """Run the cells that have no result, some side by side."""
    then = without_result(wanted, length, out)
    beginnings = [pretraining(name) for name in dict.fromkeys(c.detector for c in then)]
    first = without_result(beginnings, length, out)
    print(
        f"{len(wanted)} runs, {len(then)} of them to be made, and before them "
        f"{len(first)} that they begin with",
        flush=True,
    )
    began, done = time.time(), 0
    with ThreadPoolExecutor(jobs) as pool:
        for batch in (first, then):
            for cell in pool.map(lambda c: start(c, length, out), batch):
                done += 1
                minutes = (time.time() - began) / 60
                print(
                    f"[{done}/{len(first) + len(then)}, {minutes:.0f} min] "
                    + tell(out, cell),
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
    about = dict(asdict(cell), config=fingerprint(cell, length))
    result = {**about, **train(cell, length, out)}
    if cell.fault != PRETRAIN:
        result["begins"] = digest_of(result_path(out, pretraining(cell.detector)))
    write_text(str(result_path(out, cell)), json.dumps(result, indent=1))


def digest_of(result: Path) -> str:
    """Of the weights of a run that others begin with: they differ by processor."""
    # The script's own, of a moment ago.
    checkpoint = torch.load(result.with_suffix(".pth"), weights_only=False)
    digest = hashlib.sha256()
    for _, tensor in sorted(checkpoint["state_dict"].items()):
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()[:16]


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
