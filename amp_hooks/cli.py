"""``amp-hooks COMMAND``, or ``python -m amp_hooks COMMAND``: one door to all."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from .engine.command_line import USAGE

# Command to the module with its ``main``; imported when it is called.
COMMANDS = {
    "report": "amp_hooks.report.cli",
    "check-config": "amp_hooks.config_check.cli",
    "check-annotations": "amp_hooks.data.cli",
    "replay": "amp_hooks.forensics.cli",
    "doctor": "amp_hooks.doctor.cli",
}
_HELP = f"""usage: amp-hooks {{{",".join(COMMANDS)}}} ...

  report             explain a run from the files it left
  check-config       find what is known to hurt training in a config
  check-annotations  find the boxes and annotations that do
  replay             run a bad batch that was kept again, in other precisions
  doctor             see whether training works in this environment

'amp-hooks COMMAND --help' tells the arguments and the exit status: 0 good, 1 findings
or recovered, 2 lost, 64 and above an error of use. 'python -m amp_hooks' is the same.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Call a command; returns its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    command = given[0] if given else ""
    if command in ("-h", "--help"):
        print(_HELP, end="")
        return 0
    if command not in COMMANDS:
        problem = f"there is no command {command!r}" if command else "name a command"
        print(f"{_HELP}\nerror: {problem}", file=sys.stderr)
        return USAGE
    prog = f"amp-hooks {command}"
    status: int = import_module(COMMANDS[command]).main(given[1:], prog)
    return status
