"""Put two or more finished runs side by side in a table.

    python scripts/compare_runs.py stock=work_dirs/demo/stock ours=work_dirs/demo/ours

What it shows is read from the files that the runs left: the loss of every iteration and
the loss scale from the last checkpoint, mAP from MMEngine's scalars.json, events from
amp_hooks' stability.jsonl.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.runner import find_latest_checkpoint

from amp_hooks.engine.command_line import markdown_table
from amp_hooks.engine.safe_load import allow_mmengine_checkpoints
from amp_hooks.engine.tensors import nonfinite_names


@dataclass
class Run:
    """What is known of a finished run."""

    losses: np.ndarray
    scale: float | None
    rollbacks: int
    clamps: int
    map: float
    map50: float
    minutes: float
    nonfinite: list[str]

    @property
    def bad_losses(self) -> np.ndarray:
        """0-based iterations whose loss was not finite."""
        return np.flatnonzero(~np.isfinite(self.losses))


def read_ledger(work_dir: Path) -> list[dict[str, Any]]:
    """What our hooks did, in all starts of a run."""
    return [
        json.loads(line)
        for path in sorted(work_dir.glob("*/stability.jsonl"))
        for line in path.read_text().splitlines()
    ]


def read_run(work_dir: Path) -> Run:
    """Read a run from its work_dir.

    Raises:
        FileNotFoundError: There is no checkpoint in it.
    """
    allow_mmengine_checkpoints()
    newest = find_latest_checkpoint(str(work_dir))
    if newest is None:
        raise FileNotFoundError(f"{work_dir} holds no last_checkpoint: did it train?")
    checkpoint = torch.load(newest, map_location="cpu", weights_only=True)
    history = checkpoint["message_hub"]["log_scalars"]
    learned = {k: checkpoint.get(k) for k in ("state_dict", "ema_state_dict")}
    events = [line["event"] for line in read_ledger(work_dir)]
    metrics: dict[str, float] = {}
    for path in sorted(work_dir.glob("*/vis_data/scalars.json")):
        for line in path.read_text().splitlines():
            metrics.update(json.loads(line))
    return Run(
        losses=history["train/loss"].data[0],
        scale=checkpoint["optimizer"].get("loss_scaler", {}).get("scale"),
        rollbacks=events.count("rollback"),
        clamps=events.count("clamp_on"),
        # A model that finds nothing at all gets no metric from mmdet.
        map=metrics.get("coco/bbox_mAP", 0.0),
        map50=metrics.get("coco/bbox_mAP_50", 0.0),
        minutes=float(history["train/time"].data[0].sum()) / 60,
        nonfinite=nonfinite_names(learned, limit=10**6),
    )


def rows(runs: dict[str, Run]) -> list[list[str]]:
    """The table: a heading, then a row per quantity."""

    def losses(run: Run) -> str:
        bad = run.bad_losses
        text = f"{len(bad)} of {len(run.losses)}"
        return text + (f" (first {bad[0] + 1}, last {bad[-1] + 1})" if len(bad) else "")

    columns = {
        "iterations with a non-finite loss": losses,
        "final loss": lambda r: f"{r.losses[-1]:.3f}",
        "final loss scale": lambda r: "-" if r.scale is None else f"{r.scale:g}",
        "non-finite tensors in weights, buffers, EMA": lambda r: str(len(r.nonfinite)),
        "rollbacks": lambda r: str(r.rollbacks),
        "head clamps": lambda r: str(r.clamps),
        "final bbox mAP": lambda r: f"{r.map:.3f}",
        "final bbox mAP50": lambda r: f"{r.map50:.3f}",
        "minutes of training": lambda r: f"{r.minutes:.1f}",
    }
    return [
        ["", *runs],
        *(
            [name, *(show(run) for run in runs.values())]
            for name, show in columns.items()
        ),
    ]


def failures(stock: Run, guarded: Run, map50: float) -> list[str]:
    """What the demo claims and these two runs do not show."""
    bad = stock.bad_losses
    died = len(bad) > 0 and bad[0] < 50 and not math.isfinite(stock.losses[-1])
    claims = {
        "the stock run has a non-finite loss from before iteration 50 to its end": died,
        "the stock run's loss scale ends below 1e-3": (stock.scale or 0.0) < 1e-3,
        "the guarded run ends with a finite loss": math.isfinite(guarded.losses[-1]),
        "all weights, buffers and EMA of the guarded run are finite": (
            not guarded.nonfinite
        ),
        f"the guarded run reaches mAP50 {map50}": guarded.map50 >= map50,
    }
    return [claim for claim, holds in claims.items() if not holds]


def main() -> None:
    """Read the runs, print the table, check the demo's claims if asked."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("runs", nargs="+", metavar="NAME=WORK_DIR")
    parser.add_argument(
        "--check",
        type=float,
        metavar="MAP50",
        help="exit 1 unless the first run died and the second was saved, with this "
        "mAP50 at least",
    )
    args = parser.parse_args()
    runs = {}
    for item in args.runs:
        name, _, folder = item.partition("=")
        if not folder:
            parser.error(f"{item!r} is not NAME=WORK_DIR")
        try:
            runs[name] = read_run(Path(folder))
        except FileNotFoundError as e:
            sys.exit(f"error: {e}")
    print(markdown_table(rows(runs)))
    if args.check is not None:
        missing = failures(*list(runs.values())[:2], args.check)
        for claim in missing:
            print(f"NOT SHOWN: {claim}", file=sys.stderr)
        sys.exit(bool(missing))


if __name__ == "__main__":
    main()
