"""What is wrong in a COCO annotation file."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .boxes import NAMES, box_flaws, is_flat
from .coco_kinds import KEYS, KINDS

Record = dict[str, Any]
# Called with how many annotations have been looked at since the last call.
Progress = Callable[[int], object]

_NUMBERS = frozenset((int, float))
_HUGE = 2**1022  # of an int; a sum of two is within the range of a float still
_LVIS = "http://images.cocodataset.org/"
_NOT_FINITE = NAMES.index("not_finite")
_STEP = 1000  # annotations between two calls of it


class NotCocoError(ValueError):
    """This is no COCO annotation file; the message says why."""


@dataclass
class CocoReport:
    """What was found.

    Attributes:
        found: For each kind, positions in the file's list that it is about. An entry
            has one finding at most; notes are only about entries without.
    """

    found: dict[str, list[int]] = field(default_factory=lambda: {k: [] for k in KINDS})

    def findings(self, of: str) -> set[int]:
        """Positions of everything in a list that is a finding."""
        return {
            i
            for kind, positions in self.found.items()
            if KINDS[kind].of == of and not KINDS[kind].note
            for i in positions
        }

    @property
    def clean(self) -> bool:
        """There are no findings; there may be notes."""
        return not any(n for k, n in self.found.items() if not KINDS[k].note)


def check_structure(data: Any) -> None:
    """Refuse what has not the three lists, and panoptic annotations.

    Raises:
        NotCocoError: Says what is missing or not understood.
    """
    if not isinstance(data, dict):
        raise NotCocoError(f"it holds a {type(data).__name__}, not a JSON object")
    for key in ("images", "annotations", "categories"):
        if not isinstance(data.get(key), list):
            raise NotCocoError(f"it has no list {key!r}")
    for a in data["annotations"]:
        if isinstance(a, dict) and "segments_info" in a and "bbox" not in a:
            raise NotCocoError("its annotations are panoptic (segments_info, no bbox)")


def check_coco(
    data: Record,
    min_size: float = 1.0,
    exists: Callable[[str], bool] | None = None,
    progress: Progress = lambda n: None,
) -> CocoReport:
    """Look through an annotation file.

    Size, area and masks of crowds, and of annotations that the file itself says to
    ignore, are left alone.

    Args:
        data: The content of the file.
        min_size: Smallest width and height in pixels that is taken for sound;
            MMDetection leaves boxes below 1 out.
        exists: Whether there is an image file of that name; ``None`` if that is not
            known.
        progress: Told of every thousand annotations.

    Raises:
        NotCocoError: See :func:`check_structure`.
    """
    check_structure(data)
    report = CocoReport()
    categories = _categories(data["categories"], report.found)
    sizes = _images(data["images"], exists, report.found)
    check = _Annotations(data["annotations"], sizes, categories, report.found)
    check.run(min_size, progress)
    used = {a["image_id"] for a in of_images(data["annotations"])}
    bad = report.findings("images")
    for positions in report.found.values():
        positions.sort()
    report.found["no_annotation"] = [
        i
        for i, image in enumerate(data["images"])
        if i not in bad and image["id"] not in used
    ]
    return report


def without_findings(data: Record, report: CocoReport) -> Record:
    """A copy of the file without what was found, and without what refers to it.

    Notes stay. All that stays is as it was, in the same order.
    """
    kept = {}
    for key in ("categories", "images", "annotations"):
        bad = report.findings(key)
        kept[key] = [record for i, record in enumerate(data[key]) if i not in bad]
    images = {image["id"] for image in kept["images"]}
    categories = {category["id"] for category in kept["categories"]}
    kept["annotations"] = [
        a
        for a in kept["annotations"]
        if a["image_id"] in images and a["category_id"] in categories
    ]
    return {**data, **kept}


def of_images(annotations: list[Any]) -> Iterator[Record]:
    """Annotations that name an image, whether there is such an image or not."""
    for a in annotations:
        if isinstance(a, dict) and _is_id(a.get("image_id")):
            yield a


def _is_id(value: Any) -> bool:
    # A table turned into JSON may have made 7.0 of 7, which is found all the same.
    return type(value) in (int, str) or type(value) is float and value.is_integer()


def file_name(image: Any) -> str | None:
    """The image file of a record; LVIS has its address instead."""
    if isinstance(image, dict):
        if isinstance(name := image.get("file_name"), str):
            return name
        if isinstance(name := image.get("coco_url"), str):
            return name.replace(_LVIS, "")  # as mmdet's LVISV1Dataset does
    return None


def is_number(value: Any) -> bool:
    """A number, no bool, within the range of a float; NaN and infinity are."""
    return type(value) is float or type(value) is int and abs(value) < _HUGE


def _categories(records: list[Any], found: dict[str, list[int]]) -> set[Any]:
    ids: set[Any] = set()
    names: set[str] = set()
    for i, record in enumerate(records):
        known = isinstance(record, dict) and _is_id(record.get("id"))
        if not known or not isinstance(record.get("name"), str):
            found["category_record"].append(i)
        elif record["id"] in ids or record["name"] in names:
            found["duplicate_category"].append(i)
        else:
            ids.add(record["id"])
            names.add(record["name"])
    # Of a name that is there twice, annotations of the second id lose their category.
    return ids


def _images(
    records: list[Any],
    exists: Callable[[str], bool] | None,
    found: dict[str, list[int]],
) -> dict[Any, tuple[float, float]]:
    """Height and width of each image by its id; NaN where that is a finding."""
    sizes: dict[Any, tuple[float, float]] = {}
    for i, record in enumerate(records):
        name = file_name(record)
        if name is None or not _is_id(record.get("id")):
            found["image_record"].append(i)
            continue
        if record["id"] in sizes:
            found["duplicate_image"].append(i)
            continue
        size = record.get("height"), record.get("width")
        good = all(is_number(v) and 0 < v < math.inf for v in size)
        sizes[record["id"]] = size if good else (math.nan, math.nan)
        if not good:
            found["image_size"].append(i)
        elif exists is not None and not exists(name):
            found["missing_file"].append(i)
    return sizes


class _Annotations:
    """Looks through the list of annotations."""

    def __init__(
        self,
        records: list[Any],
        sizes: dict[Any, tuple[float, float]],
        categories: set[Any],
        found: dict[str, list[int]],
    ) -> None:
        self.records, self.sizes = records, sizes
        self.categories, self.found = categories, found
        self.seen: set[Any] = set()
        # In a file for plain detection there are no masks, which is no flaw of it.
        self.masks = any(
            isinstance(a, dict) and not _no_mask(a.get("segmentation")) for a in records
        )

    def run(self, min_size: float, progress: Progress) -> None:
        rows = list(self._well_formed(progress))
        if not rows:
            return
        used = [self.records[i] for i in rows]
        boxes = np.array([a["bbox"] for a in used], np.float64)
        sizes = np.array([self.sizes[a["image_id"]] for a in used], np.float64)
        areas = np.array([a["area"] for a in used], np.float64)
        crowd = np.array([bool(a.get("iscrowd") or a.get("ignore")) for a in used])
        corners = boxes.copy()
        with np.errstate(invalid="ignore", over="ignore"):
            corners[:, 2:] += boxes[:, :2]
            codes = box_flaws(corners, sizes, min_size, boxes[:, 2:])
            codes[crowd & (codes != _NOT_FINITE)] = 0
            no_area = (codes == 0) & ~crowd & ~((areas > 0) & (areas < np.inf))
            beyond = (corners[:, :2] < -1) | (corners[:, 2:] > sizes[:, ::-1] + 1)
            sticks = (codes == 0) & ~crowd & ~no_area & beyond.any(1)
            large = areas > 2 * boxes[:, 2] * boxes[:, 3]
        odd = (codes == 0) & ~crowd & ~no_area & large
        sound = []
        for k, i in enumerate(rows):
            if codes[k]:
                self.found[NAMES[codes[k]]].append(i)
            elif no_area[k]:
                self.found["no_area"].append(i)
            elif crowd[k] or self._mask_is_sound(i, used[k]):
                sound.append(k)
                if sticks[k]:
                    self.found["sticks_out"].append(i)
                if odd[k]:
                    self.found["odd_area"].append(i)
        self._duplicates([(rows[k], used[k]) for k in sound])

    def _well_formed(self, progress: Progress) -> Iterator[int]:
        """Positions of those whose boxes can be looked at."""
        for i, a in enumerate(self.records):
            if i % _STEP == _STEP - 1:
                progress(_STEP)
            if kind := self._broken(a):
                self.found[kind].append(i)
            else:
                yield i
        progress(len(self.records) % _STEP)

    def _broken(self, a: Any) -> str:
        if not isinstance(a, dict) or not all(key in a for key in KEYS):
            return "annotation_record"
        if not all(map(_is_id, (a["id"], a["image_id"], a["category_id"]))):
            return "annotation_record"
        if a["id"] in self.seen:
            return "duplicate_id"
        self.seen.add(a["id"])
        if a["image_id"] not in self.sizes:
            return "unknown_image"
        if a["category_id"] not in self.categories:
            return "unknown_category"
        box = a["bbox"]
        if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
            return "bbox_format"
        return "" if is_number(a["area"]) else "no_area"

    def _mask_is_sound(self, i: int, a: Record) -> bool:
        if not self.masks:
            return True
        mask = a.get("segmentation")
        if _no_mask(mask):
            self.found["no_mask"].append(i)
            return True
        if isinstance(mask, list):
            flat = [_is_flat(p) for p in mask]
            if not all(flat):
                if any(flat):
                    self.found["bad_polygon"].append(i)
                return True
        elif isinstance(mask, dict) and _has_pixels(mask):
            return True
        self.found["empty_mask"].append(i)
        return False

    def _duplicates(self, rows: list[tuple[int, Record]]) -> None:
        keys = Counter[Any]()
        for i, a in rows:
            key = (a["image_id"], a["category_id"], *a["bbox"])
            keys[key] += 1
            if keys[key] > 1:
                self.found["duplicate_box"].append(i)


def _no_mask(mask: Any) -> bool:
    """Whether there is none at all, not even a bad one."""
    return not mask or isinstance(mask, list) and not any(mask)


def _is_flat(points: Any) -> bool:
    """Whether this is no polygon, or one without an area."""
    try:
        known = isinstance(points, list) and _NUMBERS.issuperset(map(type, points))
        return not known or is_flat(points)
    except OverflowError:  # of an int beyond the range of a float
        return True


def _has_pixels(rle: Record) -> bool:
    """Whether a run-length encoded mask covers anything."""
    counts = rle.get("counts")
    if isinstance(counts, list):
        return all(map(is_number, counts)) and any(n > 0 for n in counts[1::2])
    # Of the compressed form, one run is the background alone.
    # A number ends with the character whose sixth bit, above '0', is not set.
    ends = [not (ord(c) - 48) & 0x20 for c in counts] if isinstance(counts, str) else []
    return sum(ends) > 1
