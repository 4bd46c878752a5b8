"""Look through the boxes and masks of a batch, and leave out what is invalid."""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..engine.batches import (
    boxes_of,
    data_samples,
    image_of,
    image_size,
    instances_of,
)
from ..engine.of_others import attribute
from ..engine.packed import PackedSample
from .boxes import EMPTY_MASK, NAMES, Codes, Floats, box_flaws, empty_masks, flaw_words


@dataclass
class FlawedImage:
    """A data sample with invalid boxes.

    Attributes:
        name: Path of the image, or what else it is known by.
        boxes: All of its boxes.
        codes: What is wrong with each, as of :func:`~amp_hooks.data.boxes.box_flaws`.
        device: Where they are.
        sample: The data sample.
    """

    name: str
    boxes: Floats
    codes: Codes
    device: torch.device
    sample: Any

    @property
    def counts(self) -> Counter[str]:
        """Boxes by flaw."""
        return Counter(NAMES[code] for code in self.codes.tolist() if code)

    def words(self, min_size: float) -> list[str]:
        """A few words on each of the flawed boxes."""
        return [
            f"box {i} {flaw_words(NAMES[self.codes[i]], min_size)} "
            f"({', '.join(f'{v:.6g}' for v in self.boxes[i].tolist())})"
            for i in np.flatnonzero(self.codes).tolist()
        ]

    def drop(self) -> None:
        """Leave the flawed instances out: boxes, labels, masks and all other fields."""
        keep = torch.from_numpy(self.codes == 0).to(self.device)
        if isinstance(self.sample, PackedSample):
            self.sample.keep(keep)
            return
        name, instances = instances_of(self.sample)
        setattr(self.sample, name, instances[keep])


def check_boxes(batch: Any, min_size: float) -> tuple[list[FlawedImage], set[str]]:
    """Find invalid boxes, and masks without a pixel.

    All boxes of the batch are looked at together. Where they lie on a GPU already they
    are copied to the host, all in one; masks there are not looked at.

    Args:
        batch: As a data loader gives it, of any nesting, or a single sample.
        min_size: Smallest width and height in pixels that is taken for sound.

    Returns:
        Images with such boxes, and the kinds of boxes that were passed over because
        they are no ``(x1, y1, x2, y2)`` and of no class that can make such of them, as
        mmrotate's rotated boxes and quadrilaterals can.
    """
    found: list[FlawedImage] = []
    odd: set[str] = set()
    places, tensors, sizes = [], [], []
    others: dict[int, tuple[Tensor, Tensor]] = {}
    seen: set[int] = set()
    for i, sample in enumerate(data_samples(batch)):
        if id(sample) in seen:  # as a collate function of one's own may repeat it
            continue
        seen.add(id(sample))
        boxes, tensor = boxes_of(sample)
        if tensor is None or not len(tensor):
            continue
        own = tensor.detach()
        if tensor.dim() != 2 or tensor.shape[1] != 4:
            around = _around(boxes)
            if around is None:
                odd.add(f"{type(boxes).__name__} of shape {tuple(tensor.shape[1:])}")
                continue
            tensor, lengths = around
            others[i] = own, lengths.detach()
        places.append((i, sample, len(tensor)))
        tensors.append(tensor.detach())
        sizes.append(image_size(sample) or (np.nan, np.nan))
    if not places:
        return found, odd
    counts = [n for _, _, n in places]
    table = _on_host(tensors)
    sides = _sides(table, places, others)
    codes = box_flaws(table, np.repeat(np.array(sizes), counts, 0), min_size, sides)
    start = 0
    for i, sample, n in places:
        _, instances = instances_of(sample)
        device = instances.bboxes.device
        part, rows = codes[start : start + n], table[start : start + n]
        start += n
        masks = _masks_of(instances)
        if masks is not None and len(masks) == n:
            sound = np.flatnonzero(part == 0)
            chosen = masks if len(sound) == n else _rows(masks, sound)
            part[sound[empty_masks(chosen, rows[sound])]] = EMPTY_MASK
        if part.any():
            name, _ = image_of(sample) or (f"sample {i} of the batch", None)
            if i in others:
                rows = _on_host([others[i][0]])
            found.append(FlawedImage(name, rows, part, device, sample))
    return found, odd


def _around(boxes: Any) -> tuple[Tensor, Tensor] | None:
    """``(n, 4)`` around boxes of another kind, and ``(n, 2)``, widths and heights."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that quadrilaterals have no width
            sides = torch.stack([boxes.widths, boxes.heights], 1)
        return boxes.convert_to("hbox").tensor, sides
    except Exception:  # nobody has said how
        return None


def _sides(
    table: Floats,
    places: list[tuple[int, Any, int]],
    others: dict[int, tuple[Tensor, Tensor]],
) -> Floats | None:
    if not others:
        return None
    sides, start = table[:, 2:] - table[:, :2], 0
    for i, _, n in places:
        if i in others:
            sides[start : start + n] = _on_host([others[i][1]])
        start += n
    return sides


def layout_of(batch: Any) -> str:
    """What a batch looks like, in a few words."""
    if not isinstance(batch, dict):
        return type(batch).__name__
    shown = {name: type(value).__name__ for name, value in batch.items()}
    samples = batch.get("data_samples")
    if isinstance(samples, (list, tuple)) and samples:
        shown["data_samples"] += f" of {type(samples[0]).__name__}"
    elif isinstance(samples, dict):
        shown["data_samples"] = layout_of(samples)
    inside = ", ".join(f"{name}: {kind}" for name, kind in shown.items())
    return f"dict({inside})"


def _on_host(tensors: list[Tensor]) -> Floats:
    if all(t.device.type == "cpu" and t.dtype != torch.bfloat16 for t in tensors):
        # As augmentation leaves them: their memory is read in place.
        return np.concatenate([np.asarray(t) for t in tensors], dtype=np.float64)
    table = torch.cat([t.to(tensors[0].device, torch.float32) for t in tensors])
    return np.asarray(table.cpu())


def _masks_of(instances: Any) -> Any:
    masks = attribute(instances, "masks")
    masks = attribute(masks, "masks", masks)  # of mmdet's BitmapMasks, PolygonMasks
    if isinstance(masks, Tensor):
        return np.asarray(masks) if masks.device.type == "cpu" else None
    return masks if isinstance(masks, (np.ndarray, list)) else None


def _rows(masks: Any, which: Any) -> Any:
    return [masks[i] for i in which] if isinstance(masks, list) else masks[which]
