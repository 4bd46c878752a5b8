"""The command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..engine.command_line import CANNOT_CREATE, NO_INPUT, Parser, or_failed, print_out
from ..engine.files import write_text
from .judge.status import Status
from .read.work_dir import NoRunError, read_run
from .show.page import make_page
from .show.terminal import render, window

_EPILOG = """\
examples:
  amp-hooks report work_dirs/RUN
  amp-hooks report work_dirs/RUN --html report.html

exit status:
  0   healthy
  1   recovered
  2   lost
  64  wrong arguments
  66  WORK_DIR holds no run, or no iteration of it
  70  the report itself failed
  73  the HTML file cannot be written
"""


def parse_args(arguments: Sequence[str] | None, prog: str) -> argparse.Namespace:
    """The arguments."""
    parser = Parser(
        prog=prog,
        description="Explain how a mixed-precision training run went, and what to "
        "change.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "work_dir",
        type=Path,
        metavar="WORK_DIR",
        help="of the run; several resumed starts in it are read as one",
    )
    parser.add_argument(
        "--html",
        type=Path,
        metavar="FILE",
        help="write a page with plots there as well",
    )
    parser.add_argument(
        "--no-checkpoint",
        action="store_true",
        help="do not read the newest checkpoint, which takes seconds if it is large; "
        "then the loss of each single iteration is not known",
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None, prog: str = "amp-hooks report") -> int:
    """Print the report; returns the exit status."""
    args = parse_args(arguments, prog)
    return or_failed(lambda: _report(args))


def _report(args: argparse.Namespace) -> int:
    try:
        run = read_run(args.work_dir, not args.no_checkpoint)
    except NoRunError as e:
        print(f"error: {e}", file=sys.stderr)
        return NO_INPUT
    page = make_page(run)
    if page.found.last < page.found.first and page.judged.status is Status.HEALTHY:
        print(
            f"error: no iteration of the run in {args.work_dir} is known: it has just "
            "begun, or was killed before the first one was logged. Its log has more.",
            file=sys.stderr,
        )
        return NO_INPUT
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    width, colour = window()
    print_out(render(page, encoding, colour, width))
    if args.html:
        from .show.html_page import render as render_html  # matplotlib takes a while

        try:
            write_text(str(args.html), render_html(page, args.html.parent))
        except OSError as e:
            print(
                f"error: cannot write {args.html} ({e}); give a file in a folder that "
                "exists and is writable.",
                file=sys.stderr,
            )
            return CANNOT_CREATE
    return int(page.judged.status)
