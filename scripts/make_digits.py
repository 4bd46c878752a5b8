"""Make a small, real detection data set: handwritten digits on photographs.

    python scripts/make_digits.py --out data/digits --size 128 --train 400 --val 100

The digits are scikit-learn's bundled ``load_digits`` (scanned handwriting, 8 x 8
pixels, 10 classes), the backgrounds crops of its two bundled photographs. Nothing is
downloaded. Training and validation share neither digits nor background: the left part
of each photograph and some of the digits are for training, the rest for validation.

Every image holds 1 to 3 digits, from a seventh to half of the image in size, and
they may overlap by up to 30%. The annotations are COCO files with boxes and masks; a
mask is the whole ink of its digit, what another digit covers included. The same
arguments give the same files, byte for byte.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
from sklearn.datasets import load_digits, load_sample_images
from tqdm import tqdm

MAX_OVERLAP = 0.3  # of the smaller box
INK = 0.3  # opacity from which a pixel belongs to the digit


def overlap(a: list[int], b: list[int]) -> float:
    """Intersection of two (x, y, w, h) boxes over the area of the smaller one."""
    w = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    h = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(w, 0) * max(h, 0) / min(a[2] * a[3], b[2] * b[3])


def background(rng: np.random.Generator, photos: list, size: int) -> np.ndarray:
    """A random crop of a photograph, of random zoom and brightness."""
    photo = photos[rng.integers(len(photos))]
    side = int(rng.integers(min(size, 100), min(photo.shape[:2]) + 1))
    y = int(rng.integers(photo.shape[0] - side + 1))
    x = int(rng.integers(photo.shape[1] - side + 1))
    crop = cv2.resize(photo[y : y + side, x : x + side], (size, size))
    return crop * rng.uniform(0.2, 0.5)


def run_lengths(mask: np.ndarray) -> dict[str, list[int]]:
    """COCO's uncompressed RLE: lengths of runs, zeros first, column by column."""
    flat = np.concatenate([[False], mask.ravel(order="F"), [not mask[-1, -1]]])
    ends = np.flatnonzero(flat[1:] != flat[:-1])
    counts = np.diff(ends, prepend=0).tolist()
    return dict(size=list(mask.shape), counts=counts)


def paste(
    rng: np.random.Generator, image: np.ndarray, ink: np.ndarray
) -> tuple[list[int], np.ndarray]:
    """Paint a digit at a random place; its tight (x, y, w, h) box and its mask."""
    size = image.shape[0]
    side = int(size * np.exp(rng.uniform(np.log(0.18), np.log(0.55))))
    alpha = cv2.resize(ink / 16.0, (side, side), interpolation=cv2.INTER_CUBIC)
    alpha = np.clip(alpha, 0, 1)
    ys, xs = np.where(alpha > INK)
    y, x = rng.integers(size - side + 1, size=2)
    box = [int(x + xs.min()), int(y + ys.min())]
    box += [int(np.ptp(xs)) + 1, int(np.ptp(ys)) + 1]
    colour = rng.uniform(180, 255, 3)
    patch = image[y : y + side, x : x + side]
    patch += alpha[..., None] * (colour - patch)
    mask = np.zeros((size, size), dtype=bool)
    mask[y + ys, x + xs] = True
    return box, mask


def make_image(
    rng: np.random.Generator,
    photos: list,
    digits: np.ndarray,
    labels: np.ndarray,
    size: int,
) -> tuple[np.ndarray, list[tuple[list[int], int, np.ndarray]]]:
    """One image and its (box, label, mask) triples."""
    image = background(rng, photos, size)
    objects: list[tuple[list[int], int, np.ndarray]] = []
    wanted, tries = int(rng.integers(1, 4)), 0
    while len(objects) < wanted and tries < 50:
        tries += 1
        i = int(rng.integers(len(digits)))
        painted = image.copy()
        box, mask = paste(rng, painted, digits[i])
        if all(overlap(box, other[0]) <= MAX_OVERLAP for other in objects):
            image = painted
            objects.append((box, int(labels[i]), mask))
    return image.round().astype(np.uint8), objects


def make_split(
    out: Path,
    split: str,
    count: int,
    size: int,
    seed: int,
    photos: list,
    digits: np.ndarray,
    labels: np.ndarray,
) -> None:
    """Write the images of one split and its annotation file."""
    rng = np.random.default_rng([seed, split == "val"])
    (out / split).mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for i in tqdm(range(count), desc=f"digits {split}", unit="image", mininterval=0.5):
        image, objects = make_image(rng, photos, digits, labels, size)
        name = f"{i:06d}.png"
        if not cv2.imwrite(str(out / split / name), image):
            raise OSError(f"cannot write {out / split / name}")
        images.append(dict(id=i, file_name=name, width=size, height=size))
        annotations += [
            dict(
                id=len(annotations) + k,
                image_id=i,
                category_id=label,
                bbox=box,
                area=box[2] * box[3],
                segmentation=run_lengths(mask),
                iscrowd=0,
            )
            for k, (box, label, mask) in enumerate(objects)
        ]
    categories = [dict(id=d, name=str(d)) for d in range(10)]
    content = dict(images=images, annotations=annotations, categories=categories)
    (out / f"{split}.json").write_text(json.dumps(content))


def main() -> None:
    """Parse the command line and write both splits."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n", 1)[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("data/digits"))
    parser.add_argument("--size", type=int, default=128, help="side of the images, px")
    parser.add_argument("--train", type=int, default=400, help="training images")
    parser.add_argument("--val", type=int, default=100, help="validation images")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for name, least in (("size", 32), ("train", 1), ("val", 1)):
        if getattr(args, name) < least:
            parser.error(f"--{name} must be at least {least}")

    bundle = load_digits()
    photos = [cv2.cvtColor(p, cv2.COLOR_RGB2BGR) for p in load_sample_images().images]
    held_out = np.arange(len(bundle.images)) % 5 == 0
    for split, count in (("train", args.train), ("val", args.val)):
        ours = held_out if split == "val" else ~held_out
        cut = [int(p.shape[1] * 0.7) for p in photos]
        parts = [
            (p[:, c:] if split == "val" else p[:, :c]).astype(np.float32)
            for p, c in zip(photos, cut)
        ]
        make_split(
            args.out,
            split,
            count,
            args.size,
            args.seed,
            parts,
            bundle.images[ours],
            bundle.target[ours],
        )
    print(f"{args.train} + {args.val} images of {args.size} px in {args.out}")


if __name__ == "__main__":
    main()
