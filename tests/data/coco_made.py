"""COCO files of any size, and every kind of defect in them."""

import copy
import math

import numpy as np

SIDE = 640


def healthy(images=5000, boxes=100_000, masks=True, seed=0, side=SIDE):
    """Random boxes within their images, as real files have them.

    Some are a pixel wide, touch the edges, stick out a little, or are crowds.
    """
    rng = np.random.default_rng(seed)
    w, h = np.exp(rng.uniform(0, np.log(side), (2, boxes))).round(2)
    x, y = (rng.uniform(0, 1, boxes) * (side - s) for s in (w, h))
    x, y = x.round(2), y.round(2)
    annotations = []
    for i in range(boxes):
        box = [x[i].item(), y[i].item(), w[i].item(), h[i].item()]
        a = dict(
            id=i + 1,
            image_id=int(rng.integers(images)) + 7,
            category_id=int(rng.integers(10)) + 1,
            bbox=box,
            area=box[2] * box[3] * 0.7,
            iscrowd=0,
        )
        if masks:
            x1, y1, x2, y2 = box[0], box[1], box[0] + box[2], box[1] + box[3]
            a["segmentation"] = [[x1, y1, x2, y1, x2, y2, x1, y2]]
        annotations.append(a)
    for a in annotations[5::1000]:  # as rounding leaves them
        a["bbox"][0] = side - a["bbox"][2] + 0.5
    for a in annotations[7::1000]:  # whose boxes are nobody's business
        a.update(iscrowd=1, bbox=[5.0, 5.0, 0.0, 0.0], area=0)
        if masks:
            a["segmentation"] = dict(size=[side, side], counts=[0, side * side])
    return dict(
        info=dict(description="made, ü", version=1.0),
        licenses=[dict(id=1, name="none")],
        images=[
            dict(id=i + 7, file_name=f"{i:06d}.jpg", height=side, width=side)
            for i in range(images)
        ],
        annotations=annotations,
        categories=[dict(id=i + 1, name=str(i)) for i in range(10)],
    )


def _box(*box):
    def spoil(a):
        a["bbox"] = [b if b is not None else old for b, old in zip(box, a["bbox"])]

    return spoil


def _set(key, value):
    return lambda a: a.update({key: value})


def _drop(key):
    return lambda a: a.pop(key)


# Kind of finding to ways of planting it into a sound annotation.
PLANTS = {
    "annotation_record": [
        *[_drop(k) for k in ("id", "image_id", "category_id", "bbox", "area")],
        _set("id", None),
        _set("image_id", [3]),
        _set("category_id", True),
    ],
    "duplicate_id": [_set("id", 1)],
    "unknown_image": [_set("image_id", 10**6), _set("image_id", "7")],
    "unknown_category": [_set("category_id", 99)],
    "bbox_format": [
        _set("bbox", [1, 2, 3]),
        _set("bbox", []),
        _set("bbox", None),
        _set("bbox", [1, 2, "30", 40]),
        _set("bbox", [1, 2, True, 40]),
        _set("bbox", [[1, 2, 30, 40]]),
        _set("bbox", [1, 2, 10**400, 40]),
    ],
    "not_finite": [
        _box(math.nan, None, None, None),
        _box(None, None, math.inf, None),
        _box(None, None, None, math.nan),
        _box(-math.inf, None, math.inf, None),
        _box(1e308, None, 1e308, None),
    ],
    "negative": [_box(None, None, -5, None), _box(None, None, None, -0.5)],
    "zero": [_box(None, None, 0, None), _box(None, None, None, 0.0)],
    "sub_pixel": [_box(None, None, 0.99, 5), _box(3, 3, 1e-9, 1e-9)],
    "outside": [
        _box(SIDE, None, 5, None),
        _box(None, SIDE + 9, 5, 5),
        _box(-9, None, 9, None),
        _box(None, -9.5, 9, 9),
    ],
    "no_area": [
        _set("area", 0),
        _set("area", -4),
        _set("area", math.nan),
        _set("area", math.inf),
        _set("area", None),
        _set("area", 10**400),
    ],
    "empty_mask": [
        _set("segmentation", [[5, 5, 9, 9]]),
        _set("segmentation", [[5, 5, 9, 9, 5]]),
        _set("segmentation", [[5, 5, 9, 9, 13, 13]]),
        _set("segmentation", [[5, 5, 5, math.nan, 5, 9]]),
        _set("segmentation", [[5, 5, 10**400, 5, 5, 9]]),
        _set("segmentation", dict(size=[SIDE, SIDE], counts=[9, 10**400])),
        _set("segmentation", dict(size=[SIDE, SIDE], counts=[SIDE * SIDE])),
        _set("segmentation", dict(size=[SIDE, SIDE], counts="``o<")),
    ],
}
IMAGE_PLANTS = {
    "image_record": [_drop("id"), _drop("file_name"), _set("id", None)],
    "duplicate_image": [_set("id", 8)],
    "image_size": [
        _drop("height"),
        _set("width", 0),
        _set("height", -3),
        _set("height", "640"),
        _set("width", math.nan),
    ],
}


def plant(data, seed=1, times=3):
    """A copy with every defect in random places.

    Returns:
        The copy, and for each kind the positions.
    """
    rng = np.random.default_rng(seed)
    data = copy.deepcopy(data)
    sound = [
        i
        for i, a in enumerate(data["annotations"])
        if not a["iscrowd"] and i % 1000 != 5 and a["bbox"][2] * a["bbox"][3] > 100
    ]
    ways = [(k, way) for k, some in PLANTS.items() for way in some * times]
    # Not the first of all, whose id others are given.
    chosen = rng.choice([i for i in sound if i > 0], len(ways), replace=False)
    planted = {}
    for i, (kind, way) in zip(chosen.tolist(), ways):
        way(data["annotations"][i])
        planted.setdefault(kind, []).append(i)
    return data, {kind: sorted(places) for kind, places in planted.items()}


def plant_images(data):
    """Defects in images of their own, that no annotation refers to."""
    data = copy.deepcopy(data)
    planted = {}
    for kind, ways in IMAGE_PLANTS.items():
        for way in ways:
            n = len(data["images"])
            image = dict(id=10**5 + n, file_name=f"x{n}.jpg", height=9, width=9)
            way(image)
            data["images"].append(image)
            planted.setdefault(kind, []).append(n)
    return data, planted
