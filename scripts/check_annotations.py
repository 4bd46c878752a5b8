"""Find the annotations that hurt training, before it begins.

    python scripts/check_annotations.py data/train.json --img-root data/train
    python scripts/check_annotations.py data/train.json --fix data/train_fixed.json
    python scripts/check_annotations.py --config CONFIG --samples 500

The first looks through a COCO annotation file: records that cannot be read, ids that
are there twice or lead nowhere, boxes that are NaN, negative, empty, smaller than a
pixel or outside their image, masks without an area, image files that are missing. What
does no harm, as images without annotations, is a note.

``--fix`` writes a copy without what was found; notes stay, and so does everything
else, as it was. ``--config`` takes the training data set of a config, of any format,
and looks at what its own pipeline makes of its samples, as BoxSanityHook does during
training.

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

from __future__ import annotations

import argparse
import json
import os
import posixpath
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from annotation_pictures import EXAMPLES, BadImage, draw
from annotation_samples import build_dataset, check_samples
from compare_runs import show
from mmengine.utils import ProgressBar

from amp_hooks.data.coco import (
    CocoReport,
    NotCocoError,
    check_coco,
    check_structure,
    without_findings,
)
from amp_hooks.data.coco_records import KINDS, file_name, is_number, of_images
from amp_hooks.engine.command_line import CANNOT_CREATE, NO_INPUT, Parser, or_failed
from amp_hooks.engine.files import publish

FOUND, NOT_COCO = 1, 65
_FILE_MIN_SIZE = 1.0  # below it CocoDataset leaves boxes out
_SAMPLE_MIN_SIZE = 0.01  # BoxSanityHook's


def stop(status: int, message: str) -> NoReturn:
    """End with a word on what was wrong."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(status)


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    head, _, rest = (__doc__ or "").partition("\n")
    parser = Parser(
        description=head,
        epilog=rest,
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


# --- the file -----------------------------------------------------------------------
def read(path: Path) -> dict[str, Any]:
    """The annotation file, or the end of the program."""
    try:
        data = json.loads(path.read_bytes())
        check_structure(data)
    except OSError as e:
        stop(NO_INPUT, f"cannot read {path} ({e})")
    except ValueError as e:  # of JSON, of UTF-8, NotCocoError
        what = "COCO annotation file" if isinstance(e, NotCocoError) else "JSON"
        stop(NOT_COCO, f"{path} is no {what}: {e}. Other formats: --config CFG")
    return data


def files_below(root: Path) -> Callable[[str], bool]:
    """Tells whether a folder has a file of that name, however it is written."""
    if not root.is_dir():
        stop(NO_INPUT, f"--img-root {root} is not a folder")
    files = {
        os.path.relpath(os.path.join(folder, name), root).replace(os.sep, "/")
        for folder, _, names in os.walk(root, followlinks=True)
        for name in names
    }

    def exists(name: str) -> bool:
        return posixpath.normpath(name) in files or os.path.isfile(root / name)

    return exists


def check_file(args: argparse.Namespace) -> tuple[bool, list[BadImage]]:
    """Check ANN, print the table, write the copy."""
    start = time.perf_counter()
    print(f"reading {args.ann}", file=sys.stderr)
    data = read(args.ann)
    min_size = _FILE_MIN_SIZE if args.min_size is None else args.min_size
    exists = files_below(args.img_root) if args.img_root else None
    total = len(data["annotations"])
    bar = ProgressBar(total, file=sys.stderr) if total else None

    def progress(n: int) -> None:
        if bar is not None and n:
            bar.update(n)

    report = check_coco(data, min_size, exists, progress)
    print(file=sys.stderr)
    counts = {key: len(data[key]) for key in ("images", "annotations", "categories")}
    print(f"\n### {args.ann}\n")
    print(", ".join(f"{n} {key}" for key, n in counts.items()), end="; ")
    print(f"{time.perf_counter() - start:.1f} s\n")
    print(show(table(data, report, min_size)) if any(report.found.values()) else "")
    bad = sum(len(report.findings(key)) for key in counts)
    print(f"\n{bad} findings" if bad else "no findings")
    if args.fix:
        if report.found["missing_file"] and len(report.findings("images")) == len(
            data["images"]
        ):
            stop(
                NO_INPUT,
                f"--fix would leave nothing: no image of {args.ann} is sound and found "
                f"under --img-root {args.img_root}. Give the folder in which names as "
                f"{first_missing(data, report)!r} begin",
            )
        write_fixed(args.fix, data, report)
    return report.clean, worst_of_file(args, data, report) if args.pictures else []


def table(data: dict[str, Any], report: CocoReport, min_size: float) -> list[list[str]]:
    """A row for each kind that was found."""
    rows = [["", "found", "in", "what", "training", "first of them"]]
    for name, positions in report.found.items():
        if positions:
            kind = KINDS[name]
            records = [data[kind.of][i] for i in positions[:EXAMPLES]]
            more = ", ..." if len(positions) > EXAMPLES else ""
            rows.append(
                [
                    f"{name} (note)" if kind.note else name,
                    str(len(positions)),
                    kind.of,
                    kind.meaning.format(min_size=min_size),
                    kind.effect,
                    ", ".join(map(label, records)) + more,
                ]
            )
    return rows


def label(record: Any) -> str:
    """What a person finds a record by."""
    if not isinstance(record, dict) or "id" not in record:
        return str(record)[:40].replace("|", "/")
    return f"id {record['id']}"


def first_missing(data: dict[str, Any], report: CocoReport) -> str | None:
    """The name of the first image file that is not there."""
    return file_name(data["images"][report.found["missing_file"][0]])


def write_fixed(out: Path, data: dict[str, Any], report: CocoReport) -> None:
    """Write the copy, whole or not at all."""
    fixed = without_findings(data, report)
    try:
        # A folder of its own: no name in it can be that of a file of the user's, and
        # it goes with what is in it, whatever happens.
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".fix") as folder:
            temporary = Path(folder, "out.json")
            temporary.write_text(json.dumps(fixed), encoding="ascii")
            publish(str(temporary), str(out))
    except OSError as e:
        stop(CANNOT_CREATE, f"cannot write {out} ({e})")
    kept = (
        f"{len(fixed[key])} of {len(data[key])} {key}"
        for key in ("images", "annotations", "categories")
    )
    print(f"wrote {out}: {', '.join(kept)}")
    had, have = (
        {a["image_id"] for a in of_images(d["annotations"])} for d in (data, fixed)
    )
    if lost := len({i["id"] for i in fixed["images"]} & had - have):
        print(f"{lost} images have lost all of their annotations and are background")


def worst_of_file(
    args: argparse.Namespace, data: dict[str, Any], report: CocoReport
) -> list[BadImage]:
    """The images with the most findings that can be drawn."""
    flaws = {
        id(data["annotations"][i]): name
        for name, positions in report.found.items()
        if KINDS[name].of == "annotations" and not KINDS[name].note
        for i in positions
    }
    by_image: dict[Any, list[tuple[Any, str]]] = {}
    for a in of_images(data["annotations"]):
        boxes = by_image.setdefault(a["image_id"], [])
        boxes.append((a.get("bbox"), flaws.get(id(a), "")))
    bad = report.findings("images")
    images = []
    for i, image in enumerate(data["images"]):
        boxes = by_image.get(image.get("id"), []) if i not in bad else []
        if any(flaw for _, flaw in boxes):
            name = file_name(image) or ""
            images.append(BadImage(name, args.img_root / name, corners(boxes)))
    return images


def corners(boxes: list[tuple[Any, str]]) -> list[tuple[Any, str]]:
    """COCO's x, y, width, height as x1, y1, x2, y2; what is neither stays."""
    out = []
    for box, flaw in boxes:
        if isinstance(box, list) and len(box) == 4 and all(map(is_number, box)):
            x, y, w, h = box
            box = [x, y, x + w, y + h]
        out.append((box, flaw))
    return out


def of_config(args: argparse.Namespace) -> tuple[bool, list[BadImage]]:
    """Check the samples of a config."""
    try:
        dataset = build_dataset(args.config)
    except ValueError as e:
        stop(NO_INPUT, str(e))
    min_size = _SAMPLE_MIN_SIZE if args.min_size is None else args.min_size
    worst = args.worst if args.pictures else 0
    return check_samples(dataset, args.config, args.samples, min_size, worst)


def main(arguments: Sequence[str] | None = None) -> int:
    """Check, print, draw; returns the exit status."""
    args = parse_args(arguments)
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
    return 0 if clean else FOUND


if __name__ == "__main__":
    sys.exit(main())
