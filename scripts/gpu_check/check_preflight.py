"""What pre-flight says of this card, beside what the card does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from compare_runs import read_ledger

from amp_hooks.preflight import setup_rules
from gpu_check import runs
from gpu_check.machine import Card
from gpu_check.rows import Row, judged

BY_NAME = ("fp16_card", "bf16_card", "fp16_slow")


def check(machine: Card, place: Path) -> Iterator[Row]:
    """Its rules go by the name and the capability."""
    name, capability = machine.name, machine.capability
    said = {
        dtype: [f.name for f in setup_rules.card(name, capability, dtype)]
        for dtype in ("float16", "bfloat16", "float32")
    }
    words = "; ".join(f"{d}: {', '.join(f) or 'nothing'}" for d, f in said.items())
    finite = fp16_is_finite(machine.device)
    bad = "fp16_card" in said["float16"]
    version = ".".join(map(str, capability))
    yield judged(
        f"what is said of {name} ({version})",
        f"{words}; its FP16 convolutions are {'' if finite else 'NOT '}finite",
        finite != bad,
        said=said,
    )
    lacks = "bf16_card" in said["bfloat16"]
    supported = machine.bf16()
    found = (
        f"pre-flight: {'no' if lacks else 'yes'}, torch: {'yes' if supported else 'no'}"
    )
    yield judged("whether it has BF16", found, supported != lacks)
    yield _first_batch(machine, place, said["float16"])


def fp16_is_finite(device: str) -> bool:
    """As a trained ResNet's first layers would find it."""
    torch.manual_seed(0)
    x = torch.randn(4, 3, 224, 224, device=device)
    layers = torch.nn.Sequential(
        torch.nn.Conv2d(3, 64, 7, 2, 3),
        torch.nn.BatchNorm2d(64),
        torch.nn.ReLU(),
        torch.nn.Conv2d(64, 64, 3, 1, 1),
    ).to(device)
    dtype = torch.bfloat16 if device == "cpu" else torch.float16
    with torch.autocast(device, dtype=dtype):
        return bool(layers(x).isfinite().all())


def _first_batch(machine: Card, place: Path, said: list[str]) -> Row:
    """The hook, in a run."""
    cfg = runs.config(
        "retinanet",
        place.parent / "pictures",
        place / "run",
        iters=2,
        hooks=[dict(type="amp_hooks.AmpPreflightHook")],
    )
    runs.train(cfg)
    (line,) = [x for x in read_ledger(place / "run") if x["event"] == "preflight"]
    of_card = [f for f in line["findings"] if f in BY_NAME]
    found = f"{line['seconds']} s; {', '.join(line['findings']) or 'nothing found'}"
    wanted = [] if machine.rehearsed else said
    good = of_card == wanted and bool(line["loss_differences"])
    return judged("pre-flight on a first batch", found, good, **line)
