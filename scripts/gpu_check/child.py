"""The process of one check: ``python -m gpu_check.child MODULE FOLDER``."""

from __future__ import annotations

import importlib
import json
import sys
import warnings
from pathlib import Path

import torch

from gpu_check.machine import this_machine
from gpu_check.operators import prepare


def main() -> None:
    """Write each row as soon as it is found."""
    module, folder = sys.argv[1], Path(sys.argv[2])
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    machine = this_machine()
    prepare(machine.device)  # before the check imports them
    check = importlib.import_module(module).check
    with (folder / "rows.jsonl").open("a") as stream:
        for row in check(machine, folder):
            stream.write(json.dumps(row.to_dict()) + "\n")
            stream.flush()


if __name__ == "__main__":
    main()
