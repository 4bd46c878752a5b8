"""Pictures of images with their bad boxes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from .coco_records import is_number

EXAMPLES = 3  # of a kind, in a table
_SMALLEST = 480  # pixels: smaller images are enlarged, or nothing could be read
_LINE = 18  # pixels of a line of text
_LINES = 12
_SOUND, _BAD = (80, 200, 80), (40, 40, 255)  # BGR


@dataclass
class BadImage:
    """An image with what was found in it.

    Attributes:
        name: What it is known by.
        source: Path of the file, or the pixels, or ``None``.
        boxes: Each ``(x1, y1, x2, y2)``, or what stands in its place, and its flaw;
            ``''`` if it is sound.
    """

    name: str
    source: Any
    boxes: list[tuple[Any, str]]

    @property
    def bad(self) -> int:
        """How many boxes have a flaw."""
        return sum(1 for _, flaw in self.boxes if flaw)


def draw(images: list[BadImage], folder: Path, worst: int) -> int:
    """Draw the images with the most bad boxes; returns how many.

    Raises:
        OSError: The folder or a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    images = sorted(images, key=lambda image: -image.bad)[:worst]
    for k, image in enumerate(images):
        path = folder / f"{k:02d}_{Path(image.name).stem}.png"
        done, data = cv2.imencode(".png", picture(image))
        if not done:
            raise OSError(f"{path} cannot be encoded")
        path.write_bytes(data.tobytes())
    return len(images)


def picture(image: BadImage) -> np.ndarray:
    """The image, its boxes (green: sound, red: bad), and the bad ones in words."""
    pixels = image.source
    if isinstance(pixels, (str, Path)):
        pixels = cv2.imread(str(pixels))
    if pixels is None:
        pixels = np.full((_SMALLEST, _SMALLEST, 3), 60, np.uint8)
    scale = max(1.0, _SMALLEST / max(pixels.shape[:2]))
    size = [max(1, round(side * scale)) for side in pixels.shape[1::-1]]
    canvas = cv2.resize(pixels, size, interpolation=cv2.INTER_NEAREST)
    lines = []
    for i, (box, flaw) in enumerate(image.boxes):
        if _drawable(box):
            _mark(
                canvas,
                np.array(box, float) * scale,
                _BAD if flaw else _SOUND,
                bool(flaw),
            )
        if flaw:
            lines.append(f"box {i} {flaw}: {box}")
    more = len(lines) - _LINES
    lines = [image.name, *lines[:_LINES], *([f"and {more} more"] if more > 0 else [])]
    text = np.full((_LINE * len(lines) + 8, max(size[0], 640), 3), 255, np.uint8)
    for k, line in enumerate(lines):
        at = (6, _LINE * (k + 1))
        cv2.putText(text, line, at, cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1)
    right = text.shape[1] - canvas.shape[1]
    canvas = cv2.copyMakeBorder(canvas, 0, 0, 0, right, cv2.BORDER_CONSTANT)
    return np.concatenate([canvas, text])


def _drawable(box: Any) -> bool:
    return (
        isinstance(box, (list, tuple))
        and len(box) == 4
        and all(is_number(v) and math.isfinite(v) for v in box)
    )


def _mark(canvas: np.ndarray, box: np.ndarray, colour: Any, cross: bool) -> None:
    """A rectangle; of a bad one, which may have no size or lie outside, a cross too."""
    height, width = canvas.shape[:2]
    x1, y1, x2, y2 = np.clip(box, -1e4, 1e4).round().astype(int).tolist()
    cv2.rectangle(canvas, (x1, y1), (x2, y2), colour, 1)
    if cross:
        x = min(max((x1 + x2) // 2, 0), width - 1)
        y = min(max((y1 + y2) // 2, 0), height - 1)
        cv2.drawMarker(canvas, (x, y), colour, cv2.MARKER_TILTED_CROSS, 14, 2)
