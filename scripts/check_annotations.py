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
  66  ANN, CONFIG or the folder of the images is not there, or CONFIG cannot be built
  73  the copy or the pictures cannot be written
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from annotation_pictures import BadImage, draw
from compare_runs import show
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from mmengine.runner import set_random_seed
from mmengine.utils import ProgressBar

from amp_hooks.box_check import check_boxes
from amp_hooks.core.boxes import FLAWS, NAMES, in_words
from amp_hooks.core.coco import (
    KINDS,
    CocoReport,
    NotCocoError,
    check_coco,
    check_structure,
    without_findings,
)
from amp_hooks.core.files import write_text

FOUND, USAGE, NOT_COCO, NO_INPUT, CANNOT_CREATE = 1, 64, 65, 66, 73
_EXAMPLES = 3
_FILE_MIN_SIZE = 1.0  # below it CocoDataset leaves boxes out
_SAMPLE_MIN_SIZE = 0.01  # BoxSanityHook's


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(USAGE, f"{self.prog}: error: {message}\n")


def stop(status: int, message: str) -> NoReturn:
    """End with a word on what was wrong."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(status)


def parse_args() -> argparse.Namespace:
    """The command line."""
    head, _, rest = (__doc__ or "").partition("\n")
    parser = _Parser(
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
    args = parser.parse_args()
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


def files_below(root: Path) -> set[str]:
    """Names of all files below a folder, relative to it."""
    if not root.is_dir():
        stop(NO_INPUT, f"--img-root {root} is not a folder")
    return {
        os.path.relpath(os.path.join(folder, name), root).replace(os.sep, "/")
        for folder, _, names in os.walk(root, followlinks=True)
        for name in names
    }


def check_file(args: argparse.Namespace) -> tuple[bool, list[BadImage]]:
    """Check ANN, print the table, write the copy."""
    start = time.perf_counter()
    print(f"reading {args.ann}", file=sys.stderr)
    data = read(args.ann)
    min_size = _FILE_MIN_SIZE if args.min_size is None else args.min_size
    files = files_below(args.img_root) if args.img_root else None
    total = len(data["annotations"])
    bar = ProgressBar(total, file=sys.stderr) if total else None

    def progress(n: int) -> None:
        if bar is not None and n:
            bar.update(n)

    report = check_coco(data, min_size, files, progress)
    print(file=sys.stderr)
    counts = {key: len(data[key]) for key in ("images", "annotations", "categories")}
    print(f"\n### {args.ann}\n")
    print(", ".join(f"{n} {key}" for key, n in counts.items()), end="; ")
    print(f"{time.perf_counter() - start:.1f} s\n")
    print(show(table(data, report, min_size)) if any(report.found.values()) else "")
    bad = sum(len(report.findings(key)) for key in counts)
    print(f"\n{bad} findings" if bad else "no findings")
    if args.fix:
        write_fixed(args.fix, data, report)
    return report.clean, worst_of_file(args, data, report) if args.pictures else []


def table(data: dict[str, Any], report: CocoReport, min_size: float) -> list[list[str]]:
    """A row for each kind that was found."""
    rows = [["", "found", "in", "what", "training", "first of them"]]
    for name, positions in report.found.items():
        if positions:
            kind = KINDS[name]
            records = [data[kind.of][i] for i in positions[:_EXAMPLES]]
            more = ", ..." if len(positions) > _EXAMPLES else ""
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


def write_fixed(out: Path, data: dict[str, Any], report: CocoReport) -> None:
    """Write the copy, whole or not at all."""
    fixed = without_findings(data, report)
    try:
        write_text(str(out), json.dumps(fixed, ensure_ascii=False))
    except OSError as e:
        stop(CANNOT_CREATE, f"cannot write {out} ({e})")
    kept = (
        f"{len(fixed[key])} of {len(data[key])} {key}"
        for key in ("images", "annotations", "categories")
    )
    print(f"wrote {out}: {', '.join(kept)}")
    had, have = (
        {a.get("image_id") for a in d["annotations"] if isinstance(a, dict)}
        for d in (data, fixed)
    )
    if lost := len({i["id"] for i in fixed["images"]} & had - have):
        print(f"{lost} images have lost all of their annotations and are background")


def worst_of_file(
    args: argparse.Namespace, data: dict[str, Any], report: CocoReport
) -> list[BadImage]:
    """The images with the most findings that can be drawn."""
    flaws = {
        i: name
        for name, positions in report.found.items()
        if KINDS[name].of == "annotations" and not KINDS[name].note
        for i in positions
    }
    by_image: dict[Any, list[tuple[Any, str]]] = {}
    for i, a in enumerate(data["annotations"]):
        if isinstance(a, dict) and type(a.get("image_id")) in (int, str):
            boxes = by_image.setdefault(a["image_id"], [])
            boxes.append((a.get("bbox"), flaws.get(i, "")))
    bad = report.findings("images")
    images = []
    for i, image in enumerate(data["images"]):
        boxes = by_image.get(image.get("id"), []) if i not in bad else []
        if any(flaw for _, flaw in boxes):
            name = image["file_name"]
            images.append(BadImage(name, args.img_root / name, corners(boxes)))
    return images


def corners(boxes: list[tuple[Any, str]]) -> list[tuple[Any, str]]:
    """COCO's x, y, width, height as x1, y1, x2, y2; what is neither stays."""
    out = []
    for box, flaw in boxes:
        if isinstance(box, list) and len(box) == 4 and flaw != "bbox_format":
            x, y, w, h = box
            box = [x, y, x + w, y + h]
        out.append((box, flaw))
    return out


# --- samples of a config ------------------------------------------------------------
def build_dataset(path: Path) -> Any:
    """The training data set of a config, or the end of the program."""
    if not path.is_file():
        stop(NO_INPUT, f"--config {path} is not a file")
    try:
        cfg = Config.fromfile(path)
        init_default_scope(cfg.get("default_scope", "mmdet"))
        return DATASETS.build(cfg.train_dataloader.dataset)
    except Exception as e:
        stop(
            NO_INPUT,
            f"the training data set of {path} cannot be built: {type(e).__name__}: {e}",
        )


def check_samples(args: argparse.Namespace) -> tuple[bool, list[BadImage]]:
    """Look at samples after augmentation and print the table."""
    dataset = build_dataset(args.config)
    number = args.samples or min(1000, len(dataset))
    min_size = _SAMPLE_MIN_SIZE if args.min_size is None else args.min_size
    set_random_seed(0)
    order = np.random.default_rng(0).permutation(len(dataset)).tolist()
    bar = ProgressBar(number, file=sys.stderr)
    counts: Counter[str] = Counter()
    first: dict[str, list[str]] = {}
    images, odd, boxes = [], set(), 0
    for k in range(number):
        try:
            sample = dataset[order[k % len(order)]]
            found, kinds = check_boxes(sample, min_size)
        except Exception as e:  # whatever a pipeline may raise
            counts["cannot_load"] += 1
            text = f"sample {order[k % len(order)]}: {type(e).__name__}: {e}"
            first.setdefault("cannot_load", []).append(text[:100].replace("|", "/"))
            bar.update()
            continue
        odd |= kinds
        boxes += count_boxes(sample)
        for image in found:
            counts += image.counts
            for flaw in image.counts:
                first.setdefault(flaw, []).append(image.name)
            if args.pictures:
                images.append(of_sample(sample, image))
        bar.update()
    print(file=sys.stderr)
    print(f"\n### {args.config}: {number} samples after augmentation, {boxes} boxes\n")
    rows = [["", "found", "what", "first of them"]]
    words = {name: in_words(name, min_size) for name in FLAWS}
    words["cannot_load"] = "the pipeline raised"
    for name in words:
        if counts[name]:
            names = list(dict.fromkeys(first[name]))
            more = ", ..." if len(names) > _EXAMPLES else ""
            shown = ", ".join(names[:_EXAMPLES]) + more
            rows.append([name, str(counts[name]), words[name], shown])
    print(show(rows) + "\n" if counts else "", end="")
    if odd:
        print(f"passed over, no (x1, y1, x2, y2): {', '.join(sorted(odd))}")
    print(f"\n{sum(counts.values())} findings" if counts else "no findings")
    return not counts, images


def count_boxes(sample: Any) -> int:
    """Boxes in what a data set gives."""
    from amp_hooks.batches import boxes_of, data_samples

    tables = (boxes_of(s)[1] for s in data_samples(sample))
    return sum(len(t) for t in tables if t is not None)


def of_sample(sample: Any, image: Any) -> BadImage:
    """What is drawn of a sample: its image as augmented, where that is one."""
    inputs = sample.get("inputs") if isinstance(sample, dict) else None
    pixels = None
    if isinstance(inputs, torch.Tensor) and inputs.ndim == 3 and len(inputs) == 3:
        pixels = inputs.permute(1, 2, 0).clamp(0, 255).to(torch.uint8).numpy()
    flaws = [NAMES[code] for code in image.codes]
    return BadImage(image.name, pixels, list(zip(image.boxes.tolist(), flaws)))


def main() -> int:
    """Check, print, draw; returns the exit status."""
    args = parse_args()
    clean, images = True, []
    for part, wanted in ((check_file, args.ann), (check_samples, args.config)):
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
