"""Look through a COCO annotation file for the command line, and write the copy."""

from __future__ import annotations

import argparse
import json
import os
import posixpath
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from ..engine.command_line import CANNOT_CREATE, DATA, NO_INPUT, markdown_table
from ..engine.files import publish
from ..engine.progress import progress
from ..engine.words import count
from .annotation_pictures import EXAMPLES, BadImage
from .coco import (
    CocoReport,
    NotCocoError,
    check_coco,
    check_structure,
    without_findings,
)
from .coco_records import KINDS, file_name, is_number, of_images

_MIN_SIZE = 1.0  # below it CocoDataset leaves boxes out


def stop(status: int, message: str) -> NoReturn:
    """End with a word on what was wrong."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(status)


def read(path: Path) -> dict[str, Any]:
    """The annotation file, or the end of the program."""
    try:
        data = json.loads(path.read_bytes())
        check_structure(data)
    except OSError as e:
        stop(NO_INPUT, f"cannot read {path} ({e})")
    except ValueError as e:  # of JSON, of UTF-8, NotCocoError
        what = "COCO annotation file" if isinstance(e, NotCocoError) else "JSON"
        stop(DATA, f"{path} is no {what}: {e}. Other formats: --config CFG")
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
    with progress(f"reading {args.ann}"):
        data = read(args.ann)
    min_size = _MIN_SIZE if args.min_size is None else args.min_size
    exists = files_below(args.img_root) if args.img_root else None
    total = len(data["annotations"])
    with progress("annotations", total) as advance:
        report = check_coco(data, min_size, exists, advance)
    kinds = dict(images="image", annotations="annotation", categories="category")
    number = {key: len(data[key]) for key in kinds}
    print(f"\n### {args.ann}\n")
    named = (f"{n} {kinds[key] if n == 1 else key}" for key, n in number.items())
    print(", ".join(named), end="; ")
    print(f"{time.perf_counter() - start:.1f} s\n")
    if any(report.found.values()):
        print(f"{markdown_table(table(data, report, min_size))}\n")
    bad = sum(len(report.findings(key)) for key in kinds)
    print(count(bad, "finding") if bad else "no findings")
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
        have_lost = (
            "image has lost all its" if lost == 1 else "images have lost all their"
        )
        print(f"{lost} {have_lost} annotations: background")


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
