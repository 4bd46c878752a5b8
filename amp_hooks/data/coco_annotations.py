"""The annotations of a COCO file: boxes, areas and masks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, Callable

import numpy as np

from .boxes import NAMES, box_flaws, is_flat
from .coco_records import (
    KEYS,
    NUMBERS,
    Record,
    is_id,
    is_number,
)

# Called with how many annotations have been looked at since the last call.
Progress = Callable[[int], object]

_NOT_FINITE = NAMES.index("not_finite")

_STEP = 1000  # annotations between two calls of it


class Annotations:
    """Looks through the list of annotations.

    Args:
        records: The list.
        sizes: Height and width of each image, by its id.
        categories: Ids of the categories.
        found: Gets the positions of what is wrong, by its kind.
    """

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
        """Look through all of them.

        Args:
            min_size: Smallest width and height in pixels that is taken for sound.
            progress: Told of every thousand annotations.
        """
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
        if not all(map(is_id, (a["id"], a["image_id"], a["category_id"]))):
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
        keys: Counter[Any] = Counter()
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
        known = isinstance(points, list) and NUMBERS.issuperset(map(type, points))
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
