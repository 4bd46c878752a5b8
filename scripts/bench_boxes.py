"""What BoxSanityHook's look at a batch takes.

    python scripts/bench_boxes.py

Batches as MMDetection's PackDetInputs makes them, of random sound boxes: of a batch
without a finding, every box and every mask is looked at. Time of the process, so other
programs do not count.
"""

from __future__ import annotations

import argparse
import time
from statistics import median
from typing import Any

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData

from amp_hooks import BoxSanityHook
from amp_hooks.data.box_check import check_boxes
from amp_hooks.engine.command_line import markdown_table

# Images, boxes of each, with masks.
BATCHES = [
    (2, 7, False),
    (16, 7, False),
    (16, 100, False),
    (2, 7, True),
    (16, 7, True),
]


def make_batch(images: int, boxes: int, masks: bool, size: int) -> dict[str, Any]:
    """A batch of square images."""
    rng = np.random.default_rng(0)
    samples = []
    for i in range(images):
        corner = rng.uniform(0, size * 0.8, (boxes, 2))
        side = rng.uniform(5, size * 0.2, (boxes, 2))
        table = torch.from_numpy(np.concatenate([corner, corner + side], 1)).float()
        instances = InstanceData(bboxes=HorizontalBoxes(table))
        if masks:
            pixels = np.zeros((boxes, size, size), np.uint8)
            for k, (x1, y1, x2, y2) in enumerate(table.int().tolist()):
                pixels[k, y1:y2, x1:x2] = 1
            instances.masks = BitmapMasks(pixels, size, size)
        meta = dict(img_path=f"{i}.jpg", img_shape=(size, size))
        samples.append(DetDataSample(gt_instances=instances, metainfo=meta))
    return dict(inputs=[torch.zeros(3, 8, 8)] * images, data_samples=samples)


def measure(batch: dict[str, Any], repeats: int) -> list[float]:
    """Milliseconds of each look."""
    times, min_size = [], BoxSanityHook().min_size
    for _ in range(repeats):
        start = time.process_time()
        found, _ = check_boxes(batch, min_size)
        times.append((time.process_time() - start) * 1e3)
        assert not found
    return times


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--repeats", type=int, default=300)
    parser.add_argument("--size", type=int, default=800, help="pixels (default: 800)")
    args = parser.parse_args()
    if args.repeats < 1 or args.size < 32:
        parser.error("--repeats must be at least 1 and --size at least 32")
    torch.set_num_threads(1)
    rows = [["a batch of", "fastest, ms", "median, ms"]]
    for images, boxes, masks in BATCHES:
        times = measure(make_batch(images, boxes, masks, args.size), args.repeats)
        kind = f"boxes with bitmaps of {args.size} pixels" if masks else "boxes"
        label = f"{images} images of {boxes} {kind}"
        rows.append([label, f"{min(times):.2f}", f"{median(times):.2f}"])
    print(markdown_table(rows))


if __name__ == "__main__":
    main()
