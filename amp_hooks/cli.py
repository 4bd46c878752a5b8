"""``amp-hooks COMMAND``, or ``python -m amp_hooks COMMAND``: one door to all."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from .engine.command_line import STATUSES, USAGE, Parser
from .version import __version__

# Command to the module with its ``main``, imported when it is called, and what it does.
COMMANDS = {
    "report": ("amp_hooks.report.cli", "explain a run from the files it left"),
    "check-config": (
        "amp_hooks.config_check.cli",
        "find what is known to hurt training in a config",
    ),
    "check-annotations": (
        "amp_hooks.data.cli",
        "find the boxes and annotations that do",
    ),
    "replay": (
        "amp_hooks.forensics.cli",
        "run a bad batch that was kept again, in other precisions",
    ),
    "doctor": (
        "amp_hooks.doctor.cli",
        "see whether training works in this environment",
    ),
}
_EPILOG = """\
examples:
  amp-hooks report work_dirs/RUN --html report.html
  amp-hooks check-config CONFIG
  amp-hooks check-annotations data/train.json --img-root data/train
  amp-hooks replay work_dirs/RUN/TIMESTAMP/faults/iter_N CONFIG
  amp-hooks doctor

'amp-hooks COMMAND --help' tells the arguments, and examples. 'python -m amp_hooks' is
the same.

exit status:
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Call a command; returns its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = Parser(
        prog="amp-hooks",
        description="What can be done without training.",
        epilog=_EPILOG + "".join(f"  {n:<3} {text}\n" for n, text in STATUSES.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    version = f"amp_hooks {__version__}"
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, (_, what) in COMMANDS.items():
        commands.add_parser(name, help=what, add_help=False)
    if not given:
        print(f"{parser.format_help()}\nerror: name a command", file=sys.stderr)
        return USAGE
    try:
        command = parser.parse_args(given[:1]).command
    except SystemExit as e:  # after --help, --version or an error of use
        return USAGE if e.code else 0
    main_of = import_module(COMMANDS[command][0]).main
    status: int = main_of(given[1:], f"amp-hooks {command}")
    return status
