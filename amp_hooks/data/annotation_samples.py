"""Samples of a config's training data, looked at for the command line."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from mmengine.runner import set_random_seed

from ..engine.batches import boxes_of, data_samples
from ..engine.command_line import markdown_table
from ..engine.progress import progress
from .annotation_pictures import EXAMPLES, BadImage
from .box_check import FlawedImage, check_boxes
from .boxes import FLAWS, NAMES, flaw_words

_USUAL = 1000  # samples


def build_dataset(path: Path) -> Any:
    """The training data set of a config.

    Raises:
        ValueError: There is none, it cannot be built, or it has no samples.
    """
    if not path.is_file():
        raise ValueError(f"--config {path} is not a file")
    empty = (
        f"the training data set of {path} has no samples: its metainfo['classes'] may "
        "not be those of the annotation file, or filter_cfg left nothing"
    )
    try:
        cfg = Config.fromfile(path)
        init_default_scope(cfg.get("default_scope", "mmdet"))
        dataset = DATASETS.build(cfg.train_dataloader.dataset)
        samples = len(dataset)
    except Exception as e:  # of a config or a data set of one's own
        if "need at least one array" in str(e):  # MMEngine's word for the same
            raise ValueError(empty) from e
        raise ValueError(
            f"the training data set of {path} cannot be built: {type(e).__name__}: {e}"
        ) from e
    if not samples:
        raise ValueError(empty)
    return dataset


def check_samples(
    dataset: Any, name: Path, number: int | None, min_size: float, worst: int = 0
) -> tuple[bool, list[BadImage]]:
    """Look at samples as the pipeline makes them, and print a table.

    Args:
        dataset: Gives them.
        name: Of the config.
        number: Of samples, chosen at random; beyond the size of the data set they come
            again, augmented anew.
        min_size: Smallest side that is sound, in pixels.
        worst: How many images are wanted to be drawn.

    Returns:
        Whether nothing was found; the images with the most bad boxes.
    """
    number = number or min(_USUAL, len(dataset))
    set_random_seed(0)
    order = np.random.default_rng(0).permutation(len(dataset)).tolist()
    first: dict[str, list[str]] = {}
    images: list[BadImage] = []
    odd: set[str] = set()
    counts: Counter[str] = Counter()
    boxes = 0
    with progress("samples", number) as advance:
        for k in range(number):
            place = order[k % len(order)]
            try:
                sample = dataset[place]
                found, kinds = check_boxes(sample, min_size)
            except Exception as e:  # whatever a pipeline may raise
                counts["cannot_load"] += 1
                text = f"sample {place}: {type(e).__name__}: {e}"
                first.setdefault("cannot_load", []).append(text)
                advance()
                continue
            odd |= kinds
            tables = (boxes_of(s)[1] for s in data_samples(sample))
            boxes += sum(len(t) for t in tables if t is not None)
            for image in found:
                counts += image.counts
                if worst:  # their pixels are kept, so no more than these
                    images.append(_to_draw(sample, image))
                    images = sorted(images, key=lambda image: -image.bad)[:worst]
                for flaw in image.counts:
                    first.setdefault(flaw, []).append(image.name)
            advance()
    print(f"\n### {name}: {number} samples after augmentation, {boxes} boxes\n")
    if counts:
        print(markdown_table(_table(counts, first, min_size)) + "\n")
    if odd:
        print(f"passed over, no (x1, y1, x2, y2): {', '.join(sorted(odd))}")
    print(f"{sum(counts.values()) or 'no'} findings")
    return not counts, images


def _table(
    counts: Counter[str], first: dict[str, list[str]], min_size: float
) -> list[list[str]]:
    words = {flaw: flaw_words(flaw, min_size) for flaw in FLAWS}
    words["cannot_load"] = "the pipeline raised"
    rows = [["", "found", "what", "first of them"]]
    for kind, meaning in words.items():
        if counts[kind]:
            names = list(dict.fromkeys(first[kind]))
            shown = ", ".join(name[:100].replace("|", "/") for name in names[:EXAMPLES])
            more = ", ..." if len(names) > EXAMPLES else ""
            rows.append([kind, str(counts[kind]), meaning, shown + more])
    return rows


def _to_draw(sample: Any, image: FlawedImage) -> BadImage:
    """The image as augmented, where it is one."""
    inputs = sample.get("inputs") if isinstance(sample, dict) else None
    pixels = None
    if isinstance(inputs, torch.Tensor) and inputs.ndim == 3 and len(inputs) == 3:
        pixels = inputs.permute(1, 2, 0).clamp(0, 255).to(torch.uint8).numpy()
    flaws = [NAMES[code] for code in image.codes]
    return BadImage(image.name, pixels, list(zip(image.boxes.tolist(), flaws)))
