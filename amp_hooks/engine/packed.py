"""Batches whose boxes lie in one table, as of mmyolo's fast collate functions."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from torch import Tensor

_TABLE = "bboxes_labels"


class PackedSample:
    """One image of such a batch, with what a data sample has of it.

    ``yolov5_collate`` gives ``data_samples=dict(bboxes_labels=...)``, or in its first
    versions that table alone: each row is the image's place in the batch, the label,
    and the box. Names of images are there only where somebody adds ``img_metas``.

    Attributes:
        gt_instances: ``bboxes``, of this image, on the host.
        img_shape: Height and width of the image, or None.
        img_path, img_id, sample_idx: From ``img_metas``, or None.
    """

    def __init__(
        self, batch: dict[str, Any], place: int, rows: Tensor, meta: Any
    ) -> None:
        self._batch, self._place = batch, place
        self.gt_instances = SimpleNamespace(bboxes=rows[:, 2:])
        inputs = batch.get("inputs")
        image = inputs[place] if isinstance(inputs, (Tensor, list, tuple)) else None
        self.img_shape = tuple(image.shape[-2:]) if isinstance(image, Tensor) else None
        meta = meta if isinstance(meta, Mapping) else {}
        self.img_path = meta.get("img_path")
        self.img_id = meta.get("img_id")
        self.sample_idx = meta.get("sample_idx")

    def keep(self, sound: Tensor) -> None:
        """Leave out instances of this image, and what else the batch has of them.

        Args:
            sound: For each of its boxes whether it stays.
        """
        samples = self._batch["data_samples"]
        table = table_of(self._batch)
        if table is None:
            return
        mine = table[:, 0] == self._place
        stays = ~mine
        stays[mine] = sound.to(table.device)
        if isinstance(samples, Tensor):
            self._batch["data_samples"] = samples[stays]
            return
        for name, value in list(samples.items()):
            if isinstance(value, Tensor) and value.ndim and len(value) == len(table):
                samples[name] = value[stays.to(value.device)]


def table_of(batch: Any) -> Tensor | None:
    """The table of a batch of this layout; None for any other."""
    samples = batch.get("data_samples") if isinstance(batch, dict) else None
    table = samples.get(_TABLE) if isinstance(samples, dict) else samples
    is_table = isinstance(table, Tensor) and table.ndim == 2 and table.shape[1] >= 6
    return table if is_table else None


def metas_of(batch: Any) -> list[Any]:
    """What such a batch says of each image besides its boxes; mostly nothing."""
    samples = batch.get("data_samples") if isinstance(batch, dict) else None
    metas = samples.get("img_metas") if isinstance(samples, dict) else None
    return list(metas) if isinstance(metas, (list, tuple)) else []


def packed_samples(batch: Any) -> list[PackedSample]:
    """The images of a batch of this layout; none of any other."""
    table = table_of(batch)
    if table is None:
        return []
    rows, metas, inputs = table.detach().cpu(), metas_of(batch), batch.get("inputs")
    images = len(inputs) if isinstance(inputs, (Tensor, list, tuple)) else len(metas)
    return [
        PackedSample(
            batch, i, rows[rows[:, 0] == i], metas[i] if i < len(metas) else None
        )
        for i in range(images)
    ]
