"""The kinds of things that are found in a COCO annotation file."""

from __future__ import annotations

from dataclasses import dataclass

# Without these CocoDataset cannot read an annotation.
KEYS = ("id", "image_id", "category_id", "bbox", "area")


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
