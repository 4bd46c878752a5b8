"""The command line."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from ..engine.command_line import (
    CANNOT_CREATE,
    FOUND,
    GOOD,
    LOST,
    Parser,
    or_failed,
    print_out,
)
from ..engine.files import write_text
from ..engine.progress import progress
from ..version import __version__
from .apart import run_all
from .checks import CHECKS
from .rows import Row, exit_status, plain_table, what_to_do

_LIMIT = 120.0  # seconds for one check; most of it is importing torch
_DESCRIPTION = """\
Is this environment one that training with amp_hooks works in?

Looks at versions, GPUs, mmcv's operators against plain torch, the precisions that a
network learns in, an iteration that overflows and is undone, backends for several
processes, and the disk of this folder. Needs no network, no data and no GPU.
"""
_EPILOG = """\
examples:
  amp-hooks doctor
  amp-hooks doctor --json doctor.json

exit status:
  0   training works; without a GPU it says so
  1   findings: something hurts, and training works
  2   something that training needs does not work
  64  wrong arguments
  70  the command itself failed
  73  the JSON file cannot be written
"""
_VERDICT = {
    GOOD: "Training with amp_hooks works here.",
    FOUND: "Training with amp_hooks works here; see the findings.",
    LOST: "Something that training needs does not work here.",
}
_LONGER = (
    "The longer check of a GPU, 8 minutes, in a checkout: bash scripts/gpu_check.sh"
)


def parse_args(arguments: Sequence[str] | None, prog: str) -> argparse.Namespace:
    """The arguments."""
    parser = Parser(
        prog=prog,
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the rows there as well"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None, prog: str = "amp-hooks doctor") -> int:
    """Look, print, write; returns the exit status."""
    args = parse_args(arguments, prog)
    return or_failed(lambda: _doctor(args))


def _doctor(args: argparse.Namespace) -> int:
    # One step more than it tells of, for the last check has begun and not ended.
    with progress(CHECKS[0].what, len(CHECKS) + 1) as advance:
        rows = list(run_all(CHECKS, _LIMIT, lambda what: advance(1, what)))
    status = exit_status(rows)
    _print(rows)
    remedies = "".join(f"- {line}\n" for line in what_to_do(rows))
    print_out(f"\n{remedies}{_VERDICT[status]}\n{_LONGER}\n")
    if args.json:
        about = dict(amp_hooks=__version__, machine=platform.platform())
        content = dict(about=about, status=status, rows=[r._asdict() for r in rows])
        try:
            write_text(str(args.json), json.dumps(content, indent=1) + "\n")
        except OSError as e:
            print(
                f"error: cannot write {args.json} ({e}); give a file in a folder that "
                "exists and is writable.",
                file=sys.stderr,
            )
            return CANNOT_CREATE
    return status


def _print(rows: Sequence[Row]) -> None:
    # rich comes with MMEngine, which may be what is missing.
    if sys.stdout.isatty() and find_spec("rich"):
        from .show import print_table

        print_table(rows)
    else:
        print_out(f"{plain_table(rows)}\n")
