"""A small detection data set that needs nothing but OpenCV."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np


def draw(out: Path, size: int, train: int, val: int) -> None:
    """Digits on noise, in COCO format, as the configs of ``configs/digits`` read them.

    scripts/make_digits.py makes better ones, with scikit-learn.

    Args:
        out: Folder.
        size: Of the images in pixels.
        train: Number of images.
        val: The same, to validate on.
    """
    rng = np.random.default_rng(0)
    for name, number in (("train", train), ("val", val)):
        (out / name).mkdir(parents=True, exist_ok=True)
        images, annotations = [], []
        for i in range(number):
            picture = rng.integers(0, 90, (size, size, 3), np.uint8)
            for _ in range(rng.integers(1, 4)):
                label, box = _digit(picture, rng, size)
                annotations.append(
                    dict(
                        id=len(annotations) + 1,
                        image_id=i,
                        category_id=label,
                        bbox=box,
                        area=box[2] * box[3],
                        iscrowd=0,
                    )
                )
            cv2.imwrite(str(out / name / f"{i}.png"), picture)
            images.append(dict(id=i, file_name=f"{i}.png", width=size, height=size))
        categories = [dict(id=d, name=str(d)) for d in range(10)]
        content = dict(images=images, annotations=annotations, categories=categories)
        (out / f"{name}.json").write_text(json.dumps(content))


def _digit(
    picture: np.ndarray, rng: np.random.Generator, size: int
) -> tuple[int, list[int]]:
    """Draw one somewhere; its class and its box."""
    label, font = int(rng.integers(10)), cv2.FONT_HERSHEY_SIMPLEX
    scale = float(rng.uniform(0.008, 0.018)) * size
    thick = max(1, round(scale * 2))
    (w, h), _ = cv2.getTextSize(str(label), font, scale, thick)
    w, h = min(w, size - 1), min(h, size - 1)
    x, y = int(rng.integers(size - w)), int(rng.integers(size - h))
    cv2.putText(picture, str(label), (x, y + h), font, scale, (255, 255, 255), thick)
    return label, [x, y, w, h]
