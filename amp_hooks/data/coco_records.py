"""The records of a COCO annotation file: images and categories."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

Record = dict[str, Any]

NUMBERS = frozenset((int, float))
_HUGE = 2**1022  # of an int; a sum of two is within the range of a float still
_LVIS = "http://images.cocodataset.org/"


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
