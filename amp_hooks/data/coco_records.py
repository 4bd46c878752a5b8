"""What a COCO annotation file consists of, and what can be wrong with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Dict

Record = Dict[str, Any]

NUMBERS = frozenset((int, float))
_HUGE = 2**1022  # of an int; a sum of two is within the range of a float still
_LVIS = "http://images.cocodataset.org/"

# Without these CocoDataset cannot read an annotation.
KEYS = ("id", "image_id", "category_id", "bbox", "area")


def is_number(value: Any) -> bool:
    """A number, no bool, within the range of a float; NaN and infinity are."""
    return type(value) is float or type(value) is int and abs(value) < _HUGE


def is_id(value: Any) -> bool:
    """What a record can be named by."""
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


def of_images(annotations: list[Any]) -> Iterator[Record]:
    """Annotations that name an image, whether there is such an image or not."""
    for a in annotations:
        if isinstance(a, dict) and is_id(a.get("image_id")):
            yield a


def check_categories(records: list[Any], found: dict[str, list[int]]) -> set[Any]:
    """Ids of the categories; notes in ``found`` what is wrong with others."""
    ids: set[Any] = set()
    names: set[str] = set()
    for i, record in enumerate(records):
        known = isinstance(record, dict) and is_id(record.get("id"))
        if not known or not isinstance(record.get("name"), str):
            found["category_record"].append(i)
        elif record["id"] in ids or record["name"] in names:
            found["duplicate_category"].append(i)
        else:
            ids.add(record["id"])
            names.add(record["name"])
    # Of a name that is there twice, annotations of the second id lose their category.
    return ids


def check_images(
    records: list[Any],
    exists: Callable[[str], bool] | None,
    found: dict[str, list[int]],
) -> dict[Any, tuple[float, float]]:
    """Height and width of each image by its id; NaN where that is a finding."""
    sizes: dict[Any, tuple[float, float]] = {}
    for i, record in enumerate(records):
        name = file_name(record)
        if name is None or not is_id(record.get("id")):
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


@dataclass(frozen=True)
class Kind:
    """A kind of thing that is found.

    Attributes:
        of: The list of the file that it is found in.
        meaning: What it is.
        effect: What MMDetection's CocoDataset makes of it.
        note: It does no harm in training, and no file is refused because of it.
    """

    of: str
    meaning: str
    effect: str
    note: bool = False


_DROPPED = "left out without a word"
_CRASH = "the data set cannot be read"
KINDS = {
    "category_record": Kind("categories", "id or name missing", _CRASH),
    "duplicate_category": Kind(
        "categories", "id or name of an earlier category", "labels are mixed up"
    ),
    "image_record": Kind("images", "id or file_name missing", _CRASH),
    "duplicate_image": Kind(
        "images", "id of an earlier image", "boxes on the wrong image"
    ),
    "image_size": Kind("images", "no height and width above 0", _CRASH),
    "missing_file": Kind("images", "no such file", "training ends"),
    "annotation_record": Kind(
        "annotations", f"one of {', '.join(KEYS)} is missing or no id", _CRASH
    ),
    "duplicate_id": Kind("annotations", "id of an earlier annotation", _CRASH),
    "unknown_image": Kind("annotations", "image_id of no image", _DROPPED),
    "unknown_category": Kind("annotations", "category_id of no category", _DROPPED),
    "bbox_format": Kind("annotations", "bbox is not four numbers", _CRASH),
    "not_finite": Kind(
        "annotations", "bbox with NaN or infinity", "loss not finite, or left out"
    ),
    "negative": Kind("annotations", "negative width or height", _DROPPED),
    "zero": Kind("annotations", "zero width or height", _DROPPED),
    "sub_pixel": Kind("annotations", "smaller than {min_size:g} pixel", _DROPPED),
    "outside": Kind("annotations", "entirely outside the image", _DROPPED),
    "no_area": Kind("annotations", "area is not above 0", _DROPPED),
    "empty_mask": Kind(
        "annotations",
        "a segmentation without an area",
        "instance segmentation ends, or ignores it",
    ),
    "no_mask": Kind(
        "annotations",
        "no segmentation, where others have one",
        "instance segmentation ends, or ignores it",
        note=True,
    ),
    "sticks_out": Kind(
        "annotations", "more than a pixel beyond its image", "clipped", note=True
    ),
    "odd_area": Kind(
        "annotations",
        "area more than twice the box's",
        "counted as large in mAP",
        note=True,
    ),
    "bad_polygon": Kind(
        "annotations", "one of several polygons has no area", "left out", note=True
    ),
    "duplicate_box": Kind(
        "annotations", "same image, category and box again", "counts twice", note=True
    ),
    "no_annotation": Kind(
        "images", "without an annotation", "background, or filtered", note=True
    ),
}
