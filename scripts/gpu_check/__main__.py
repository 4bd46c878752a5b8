"""The GPU check; scripts/gpu_check.sh runs it.

Prints one table and writes ``gpu_check.json``. Exit status 1 if a check has failed.
Without a card it rehearses itself on the CPU, made tiny.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from gpu_check.machine import Card, this_machine
from gpu_check.one_by_one import Check, run_all
from gpu_check.rows import Row, any_failed, table

# In seconds; what matters most comes first.
CHECKS = [
    Check(name, f"gpu_check.check_{name}", limit)
    for name, limit in dict(
        operators=60,
        bits=90,
        rollback=80,
        overflow=120,
        waits=60,
        launches=60,
        time=120,
        memory=60,
        snapshots=80,
        fallback=80,
        nccl=80,
        preflight=60,
    ).items()
]
NAMES = [check.name for check in CHECKS]
REHEARSED = "REHEARSED ON A CPU: this tells nothing of a card"
PACKAGES = ("torch", "torchvision", "mmengine", "mmcv", "mmcv-lite", "mmdet", "numpy")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="gpu_check.sh", description=__doc__)
    add = parser.add_argument
    add("--out", type=Path, default=Path("work_dirs/gpu_check"), metavar="DIR")
    add("--only", nargs="+", choices=NAMES, default=NAMES, metavar="CHECK")
    add("--minutes", type=float, default=8.0, help="for all of it (default: 8)")
    add("--rehearse", action="store_true", help="on the CPU, though there is a card")
    return parser.parse_args()


def main() -> int:
    """Run the checks."""
    args, began = parse(), time.monotonic()
    if args.rehearse:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    machine = this_machine()
    place = args.out.resolve()
    shutil.rmtree(place / "checks", ignore_errors=True)
    make_pictures(machine, place / "checks" / "pictures")
    about = dict(described(), rehearsed=machine.rehearsed, **versions())
    print(f"[gpu_check] {heading(about)}", flush=True)
    # A CPU takes longer, and others use it too.
    patience = machine.pick(1, 4)
    checks = [
        replace(check, limit=check.limit * patience)
        for check in CHECKS
        if check.name in args.only
    ]
    left = args.minutes * 60 - (time.monotonic() - began)
    rows = list(run_all(checks, place / "checks", left, os.environ))
    seconds = time.monotonic() - began
    report(place / "gpu_check.json", about, rows, seconds)
    return int(any_failed(rows))


def report(path: Path, about: dict[str, Any], rows: list[Row], seconds: float) -> None:
    """Print the table and write the file."""
    failed = sorted({row.check for row in rows if any_failed([row])})
    content = dict(about=about, seconds=round(seconds, 1), failed=failed)
    content["rows"] = [row.to_dict() for row in rows]
    path.write_text(json.dumps(content, indent=1))
    print(f"\n{heading(about)}\n\n{table(rows)}\n")
    if about["rehearsed"]:
        print(f"{REHEARSED}.")
    what = f"failed: {', '.join(failed)}" if failed else "no check failed"
    print(f"{what}; {seconds:.0f} s; {path}")


def heading(about: dict[str, Any]) -> str:
    """On which machine, in one line."""
    where = f"{about['card']} (capability {about.get('capability')})"
    if about["rehearsed"]:
        where = REHEARSED
    return ", ".join([where, *(f"{p} {v}" for p, v in about["packages"].items())])


def described() -> dict[str, Any]:
    """The card, as another process sees it: this one leaves it to the checks."""
    command = [sys.executable, "-m", "gpu_check.machine"]
    try:
        said = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=60)
    except (subprocess.SubprocessError, OSError) as e:
        return dict(card=f"could not be asked: {e}")
    return json.loads(said.stdout)


def versions() -> dict[str, Any]:
    """Of Python and of the packages that are there."""
    found = dict(python=sys.version.split()[0])
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return dict(packages=found, threads=torch.get_num_threads())


def make_pictures(machine: Card, out: Path) -> None:
    """What the runs train on."""
    from gpu_check.pictures import draw

    draw(out, 128, machine.pick(200, 12), 4)


if __name__ == "__main__":
    sys.exit(main())
