"""What is wrong in a COCO annotation file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .coco_annotations import Annotations, Progress
from .coco_records import (
    KINDS,
    Record,
    check_categories,
    check_images,
    of_images,
)


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
    categories = check_categories(data["categories"], report.found)
    sizes = check_images(data["images"], exists, report.found)
    check = Annotations(data["annotations"], sizes, categories, report.found)
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
