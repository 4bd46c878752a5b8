"""Healthy runs, uneven ones among them: do the hooks leave them as they are?

    python scripts/healthy_runs.py --quick   # 6 runs, some minutes on 2 cores
    python scripts/healthy_runs.py           # all of them; can be resumed

Every run is made twice in a process of its own, without hooks and with StabilityHook,
its intervals a twentieth of their defaults, on the same digits in the same order: six
small detectors, from scratch with AdamW, and four of them fine-tuned with SGD, from the
weights that the rescue benchmark begins with; in FP32, BF16 and FP16, with a loss scale
that begins so low that no step overflows. All are made on a CPU, where two runs are
alike bit for bit: FP16 is rehearsed (amp_hooks.CpuAmpOptimWrapper), and two-stage
detectors are not trained in BF16, for which mmcv has no NMS there.

Beside a warm-up and a cosine there are 17 recipes that make a run uneven: schedules,
losses and pipelines that are switched, hard batches and others. Each is tried in two
detectors.

Counted are interventions: what amp_hooks' ledger has of divergence, vetoes, clamps
switched on, rollbacks, fallbacks and aborts. A refused step whose loss scale was too
high is none; the loss out of its range for a while ("watched") is none, and is counted
by itself. Compared are weights, buffers, optimizer state, loss scale and EMA at the
end, bit by bit, and the loss of each iteration.

Runs that are done are kept in --out and made again only if their config or code has
changed. In the end there are healthy.json and healthy.md.

Exit status 1 if there was an intervention, a difference or an error.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from apart import one_thread_each, run_apart
from healthy_cases import (
    DETECTORS,
    ILL,
    QUICK,
    RECIPES,
    STARTS,
    Case,
    all_cases,
    chosen,
    fingerprint,
    result_path,
)
from healthy_pair import compare
from rescue_benchmark import prepare, run_missing
from rescue_cells import Length, machine, pretraining

from amp_hooks.engine.command_line import markdown_table
from amp_hooks.engine.files import write_text

PAGE = """\
# Healthy runs

Written by `python scripts/healthy_runs.py`, which says what its runs are and what is
counted. Made on {about}.

{runs} runs of {iters} iterations in all, each without and with amp_hooks:
{ill} with an intervention, {differ} that differ, {errors} that ended with an error,
{watched} watched for a while.

{table}
"""


def main() -> None:
    """Run what is missing, then write the results."""
    args = parse_args()
    if torch.cuda.is_available():
        sys.exit(
            "error: on a GPU two runs differ by themselves. Set CUDA_VISIBLE_DEVICES="
        )
    one_thread_each()
    out = Path(args.out)
    length = Length(args.images, args.epochs, args.pretrain_epochs)
    prepare(out, length)
    wanted = chosen(QUICK if args.quick else all_cases(), args.detectors, args.recipes)
    run_all(wanted, length, out, args.jobs)
    results = [json.loads(result_path(out, case).read_text()) for case in wanted]
    about = machine()
    everything = dict(about=about, length=asdict(length), results=results)
    write_text(str(out / "healthy.json"), json.dumps(everything, indent=1))
    page = markdown(results, about)
    write_text(str(out / "healthy.md"), page)
    print(page)
    broken = failures(results)
    for line in broken:
        print(f"NOT SHOWN: {line}", file=sys.stderr)
    sys.exit(bool(broken))


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="a small part of it")
    parser.add_argument("--out", default="work_dirs/healthy")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--detectors", nargs="+", choices=DETECTORS)
    parser.add_argument(
        "--recipes",
        nargs="+",
        choices=RECIPES,
        help=f"{ILL} is not healthy, and only run if it is named",
    )
    parser.add_argument("--images", type=int, help="for training")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--pretrain-epochs", type=int)
    length = Length()
    parser.set_defaults(
        detectors=list(DETECTORS),
        recipes=[recipe for recipe in RECIPES if recipe != ILL],
        images=length.images,
        epochs=length.epochs,
        pretrain_epochs=length.pretrain,
    )
    return parser.parse_args()


def run_all(wanted: list[Case], length: Length, out: Path, jobs: int) -> None:
    """Make the runs that have no result, some side by side."""
    tuned = dict.fromkeys(case.detector for case in wanted if case.start == "tuned")
    if tuned:
        run_missing([*map(pretraining, tuned)], length, out, jobs)
    missing = [case for case in wanted if not done(case, length, out)]
    print(f"{len(wanted)} runs, {len(missing)} of them to be made", flush=True)
    began = time.time()
    with ThreadPoolExecutor(jobs) as pool:
        finished = pool.map(lambda case: start(case, length, out), missing)
        for number, case in enumerate(finished, 1):
            minutes = (time.time() - began) / 60
            result = json.loads(result_path(out, case).read_text())
            about = f"[{number}/{len(missing)}, {minutes:.0f} min] {case.name}"
            print(f"{about}: {', '.join(wrong(result)) or 'the same'}", flush=True)


def done(case: Case, length: Length, out: Path) -> bool:
    """Whether there is a result of this very run; another one is removed."""
    path = result_path(out, case)
    if path.exists():
        if json.loads(path.read_text())["config"] == fingerprint(case, length):
            return True
        path.unlink()
    return False


def start(case: Case, length: Length, out: Path) -> Case:
    """Train a case in a process of its own."""
    run_apart(run_case, case, length, out, result=result_path(out, case))
    return case


def run_case(case: Case, length: Length, out: Path) -> None:
    """Train twice, and write the result."""
    about = dict(asdict(case), config=fingerprint(case, length))
    result = {**about, **compare(case, length, out)}
    write_text(str(result_path(out, case)), json.dumps(result, indent=1))


def markdown(results: list[dict[str, Any]], about: str) -> str:
    """The page: a summary, then every run."""
    head = ["recipe", "detector", "begun", "precision", "iterations"]
    head += ["interventions", "watched", "weights"]
    table = [head]
    for r in results:
        table.append(
            [
                RECIPES[r["recipe"]][0],
                r["detector"],
                STARTS[r["start"]],
                r["precision"],
                str(r["iters"]),
                ", ".join(told(r["interventions"])) or "0",
                str(len(r["watches"])),
                "differ" if differs(r) else "the same",
            ]
        )
    return PAGE.format(
        about=about,
        runs=len(results),
        iters=sum(r["iters"] for r in results),
        ill=sum(bool(r["interventions"]) for r in results),
        differ=sum(map(differs, results)),
        errors=sum(bool(r["error"]) for r in results),
        watched=sum(bool(r["watches"]) for r in results),
        table=markdown_table(table),
    )


def failures(results: list[dict[str, Any]]) -> list[str]:
    """What was not left as it is."""
    return [
        f"{r['recipe']}, {r['detector']} {STARTS[r['start']]}, {r['precision']}: {what}"
        for r in results
        for what in wrong(r)
    ]


def wrong(result: dict[str, Any]) -> list[str]:
    """What the hooks did to a run that they should not have."""
    found = told(result["interventions"])
    if differs(result):
        names, first = result["differ"], result["first"]
        of = f"{len(names)} tensors differ" if names else "the losses differ"
        of += f" from iteration {first} on" if first is not None else ""
        refused = result["overflows"]  # which takes BatchNorm back as well
        found.append(of + (f", {refused} steps overflowed" if refused else ""))
    return found + ([result["error"]] if result["error"] else [])


def differs(result: dict[str, Any]) -> bool:
    """Whether the two runs were not bit-identical."""
    return bool(result["differ"]) or result["first"] is not None


def told(lines: list[dict[str, Any]]) -> list[str]:
    """Lines of a ledger in short."""
    return [f"{line['event']} at {line['iter']}" for line in lines]


if __name__ == "__main__":
    main()
