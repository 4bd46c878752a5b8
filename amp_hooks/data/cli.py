"""Find the annotations that hurt training, before it begins."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..engine.command_line import (
    CANNOT_CREATE,
    FOUND,
    GOOD,
    NO_INPUT,
    Parser,
    or_failed,
)
from .annotation_file import check_file, stop
from .annotation_pictures import BadImage, draw
from .annotation_samples import build_dataset, check_samples

_SAMPLE_MIN_SIZE = 0.01  # BoxSanityHook's
_DESCRIPTION = """\
Find the annotations that hurt training, before it begins.

ANN is a COCO annotation file: looked for are records that cannot be read, ids that are
there twice or lead nowhere, boxes that are NaN, negative, empty, smaller than a pixel
or outside their image, masks without an area, image files that are missing. What does
no harm, as images without annotations, is a note.

--fix writes a copy without what was found; notes stay, and so does everything else, as
it was. --config takes the training data set of a config, of any format, and looks at
what its own pipeline makes of its samples, as BoxSanityHook does during training.
"""
_EPILOG = """\
examples:
  amp-hooks check-annotations data/train.json --img-root data/train
  amp-hooks check-annotations data/train.json --fix data/train_fixed.json
  amp-hooks check-annotations --config CONFIG --samples 500

exit status:
  0   nothing was found, or notes only
  1   something was found
  64  wrong arguments
  65  ANN is no COCO file
  66  ANN, CONFIG or the folder of the images is not there, or CONFIG cannot be built or
      has no samples
  70  the check itself failed
  73  the copy or the pictures cannot be written
"""


def parse_args(arguments: Sequence[str] | None, prog: str) -> argparse.Namespace:
    """The command line."""
    parser = Parser(
        prog=prog,
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("ann", nargs="?", type=Path, metavar="ANN", help="COCO annotation file")
    add("--img-root", type=Path, metavar="DIR", help="where ANN's image files are")
    add("--fix", type=Path, metavar="OUT", help="write a copy without the findings")
    add("--force", action="store_true", help="replace OUT if it is there")
    add("--config", type=Path, metavar="CFG", help="look at its training samples")
    add("--samples", type=int, metavar="N", help="of them (default: 1000, or all)")
    add(
        "--min-size",
        type=float,
        metavar="PIXELS",
        help="smallest side that is sound (default: 1 in ANN, as for MMDetection; "
        "0.01 after augmentation, as for BoxSanityHook)",
    )
    add("--pictures", type=Path, metavar="DIR", help="draw the worst images there")
    add("--worst", type=int, default=10, metavar="N", help="so many (default: 10)")
    args = parser.parse_args(arguments)
    if args.ann is None and args.config is None:
        parser.error("give ANN, --config CFG, or both")
    for name in ("fix", "img_root"):
        if getattr(args, name) and args.ann is None:
            parser.error(f"--{name.replace('_', '-')} needs ANN")
    if args.samples is not None and args.config is None:
        parser.error("--samples needs --config CFG")
    if args.pictures and args.ann and not args.img_root:
        parser.error("--pictures needs --img-root DIR to find the images of ANN")
    for name in ("samples", "worst"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    if args.min_size is not None and not 0 < args.min_size < float("inf"):
        parser.error(f"--min-size must be above 0, got {args.min_size}")
    if args.fix and args.fix.exists():
        if args.ann.exists() and args.fix.samefile(args.ann):
            parser.error(f"--fix {args.fix} is ANN itself, which is never changed")
        if not args.force:
            stop(CANNOT_CREATE, f"{args.fix} is there already; --force replaces it")
    return args


def of_config(args: argparse.Namespace) -> tuple[bool, list[BadImage]]:
    """Check the samples of a config."""
    try:
        dataset = build_dataset(args.config)
    except ValueError as e:
        stop(NO_INPUT, str(e))
    min_size = _SAMPLE_MIN_SIZE if args.min_size is None else args.min_size
    worst = args.worst if args.pictures else 0
    return check_samples(dataset, args.config, args.samples, min_size, worst)


def main(
    arguments: Sequence[str] | None = None, prog: str = "amp-hooks check-annotations"
) -> int:
    """Check, print, draw; returns the exit status."""
    args = parse_args(arguments, prog)
    return or_failed(lambda: check(args))


def check(args: argparse.Namespace) -> int:
    """The same, of arguments that are in order."""
    clean, images = True, []
    for part, wanted in ((check_file, args.ann), (of_config, args.config)):
        if wanted is not None:
            good, more = part(args)
            clean &= good
            images += more
    if args.pictures and images:
        try:
            drawn = draw(images, args.pictures, args.worst)
        except OSError as e:
            stop(CANNOT_CREATE, f"cannot write to {args.pictures} ({e})")
        print(f"{drawn} pictures in {args.pictures}")
    return GOOD if clean else FOUND
