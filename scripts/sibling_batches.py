"""Random samples in the form that each package beside MMDetection trains on.

Where a package's own transforms make the targets (heat maps, masked patches, text maps)
they are run, all but those that read files and those that need a package of their own.
"""

from __future__ import annotations

import importlib
import os.path as osp
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.structures import InstanceData, PixelData
from sibling_batches_3d import camera, scan
from torch.utils.data import Dataset

Item = dict

_READ = ("LoadImageFromFile", "LoadImage", "LoadOCRAnnotations", "LoadAnnotations")
_LEFT_OUT = (*_READ, "Albumentation", "Albu", "TorchVisionWrapper", "YOLOXHSVRandomAug")


class RandomSamples(Dataset):
    """Eight random samples of a kind.

    Args:
        data: A key of ``MAKERS``.
        cfg: The config that they are for.
        size: Height and width of the images, or of one frame.
        classes: Number of classes.
    """

    metainfo: dict[str, Any] = {}

    def __init__(self, data: str, cfg: Config, size: int, classes: int) -> None:
        self.make, self.cfg = MAKERS[data], cfg
        self.size, self.classes = size, classes

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Item:
        return self.make(np.random.default_rng(index), self, index)


def _image(rng: np.random.Generator, size: int) -> torch.Tensor:
    return torch.tensor(rng.integers(256, size=(3, size, size)), dtype=torch.uint8)


def _meta(index: int, size: int) -> dict[str, Any]:
    shape = (size, size)
    return dict(
        img_path=f"{index}.png",
        img_id=index,
        img_shape=shape,
        ori_shape=shape,
        pad_shape=shape,
        batch_input_shape=shape,
        scale_factor=(1.0, 1.0),
    )


def _corners(rng: np.random.Generator, size: int, n: int = 4) -> np.ndarray:
    low = rng.uniform(0, 0.5, (n, 2))
    corners = np.concatenate([low, low + rng.uniform(0.2, 0.5, (n, 2))], 1) * size
    return corners.astype(np.float32)


def _boxes(rng: np.random.Generator, of: RandomSamples, index: int) -> Item:
    from mmdet.structures import DetDataSample
    from mmdet.structures.bbox import HorizontalBoxes

    boxes = torch.tensor(_corners(rng, of.size))
    labels = torch.tensor(rng.integers(of.classes, size=len(boxes)))
    instances = InstanceData(bboxes=HorizontalBoxes(boxes), labels=labels)
    sample = DetDataSample(metainfo=_meta(index, of.size), gt_instances=instances)
    return dict(inputs=_image(rng, of.size), data_samples=sample)


def _rotated(rng: np.random.Generator, of: RandomSamples, index: int) -> Item:
    from mmdet.structures import DetDataSample
    from mmdet.structures.bbox import HorizontalBoxes
    from mmrotate.structures.bbox import RotatedBoxes

    corners = torch.tensor(_corners(rng, of.size))
    low, high = corners[:, :2], corners[:, 2:]
    center, sides = (low + high) / 2, high - low
    angle = torch.tensor(rng.uniform(-0.7, 0.7, (len(corners), 1)), dtype=torch.float32)
    boxes: Any = RotatedBoxes(torch.cat([center, sides, angle], 1))
    box_type = of.cfg.get("box_type", "rbox")
    for transform in of.cfg.train_pipeline:
        if transform["type"].endswith("LoadAnnotations"):
            box_type = transform.get("box_type", box_type)
        if transform["type"].endswith("ConvertBoxType"):
            box_type = transform["box_type_mapping"]["gt_bboxes"]
    if box_type == "hbox":
        boxes = HorizontalBoxes(corners)
    else:
        boxes = boxes.convert_to(box_type)
    labels = torch.tensor(rng.integers(of.classes, size=len(corners)))
    instances = InstanceData(bboxes=boxes, labels=labels)
    none = InstanceData(bboxes=boxes[:0], labels=labels[:0])
    sample = DetDataSample(
        metainfo=_meta(index, of.size), gt_instances=instances, ignored_instances=none
    )
    return dict(inputs=_image(rng, of.size), data_samples=sample)


def _pixels(rng: np.random.Generator, of: RandomSamples, index: int) -> Item:
    from mmseg.structures import SegDataSample

    shape = (1, of.size, of.size)
    # In patches, and half of it one class: something can be learned.
    labels = rng.integers(of.classes, size=shape) * (np.arange(of.size) % 16 < 8)
    sample = SegDataSample(metainfo=_meta(index, of.size))
    sample.gt_sem_seg = PixelData(data=torch.tensor(labels))
    sample.gt_edge_map = PixelData(data=torch.tensor(labels > 0).float())
    return dict(inputs=_image(rng, of.size), data_samples=sample)


def _label(rng: np.random.Generator, of: RandomSamples, index: int) -> Item:
    from mmpretrain.structures import DataSample

    sample = DataSample(metainfo=_meta(index, of.size))
    sample.set_gt_label(index % of.classes)
    return dict(inputs=_image(rng, of.size), data_samples=sample)


def _action(of: RandomSamples, index: int, inputs: torch.Tensor) -> Item:
    from mmaction.structures import ActionDataSample

    sample = ActionDataSample(metainfo=_meta(index, of.size))
    setter = getattr(sample, "set_gt_label", None) or sample.set_gt_labels
    setter(index % of.classes)
    return dict(inputs=inputs, data_samples=sample)


def _clip(rng: np.random.Generator, of: RandomSamples, index: int) -> Item:
    frames = of.cfg.get("frames", (1, 8))
    shape = (*frames, 3, of.size, of.size)
    video = torch.tensor(rng.integers(256, size=shape), dtype=torch.uint8)
    if of.cfg.get("of_clips", True):  # (clips, C, T, H, W)
        video = video.transpose(1, 2)
    else:  # (frames, C, H, W)
        video = video.flatten(0, 1)
    return _action(of, index, video.contiguous())


def _skeleton(rng: np.random.Generator, of: RandomSamples, index: int) -> Item:
    # (clips, persons, frames, joints, coordinates)
    joints = torch.tensor(rng.normal(size=(1, 2, 20, 17, 3)), dtype=torch.float32)
    return _action(of, index, joints)


def _through(of: RandomSamples, results: Item) -> Item:
    """A sample through the config's own transforms."""
    pipeline = of.cfg.get("train_pipeline") or of.cfg.train_dataloader.dataset.pipeline
    kept = [dict(t) for t in pipeline if t["type"].split(".")[-1] not in _LEFT_OUT]
    for transform in kept:
        inner = transform.get("transforms")
        if isinstance(inner, (list, tuple)):
            transform["transforms"] = [
                [dict(t) for t in views if t["type"] not in _LEFT_OUT]
                if isinstance(views, (list, tuple))
                else dict(views)
                for views in inner
                if isinstance(views, (list, tuple)) or views["type"] not in _LEFT_OUT
            ]
    for _ in range(20):
        made = Compose(kept)(dict(results))
        if made is not None:
            return made
    raise RuntimeError("the config's transforms leave nothing of a random sample")


def _read(rng: np.random.Generator, of: RandomSamples, index: int) -> Item:
    array = rng.integers(256, size=(of.size, of.size, 3), dtype=np.uint8)
    return dict(img=array, **_meta(index, of.size))


def _views(rng: np.random.Generator, of: RandomSamples, index: int) -> Item:
    return _through(of, dict(_read(rng, of, index), gt_label=index % of.classes))


def _keypoints(rng: np.random.Generator, of: RandomSamples, index: int) -> Item:
    package = importlib.import_module("mmpose")
    utils = importlib.import_module("mmpose.datasets.datasets.utils")
    assert package.__file__
    about = ".mim/configs/_base_/datasets/coco.py"
    path = osp.join(osp.dirname(package.__file__), about)
    meta = utils.parse_pose_metainfo(dict(from_file=path))
    points, n = meta["num_keypoints"], 1
    inside = rng.uniform(0.2, 0.8, (n, points, 2)) * of.size
    low, high = inside.min(1), inside.max(1)
    boxes = np.concatenate([low, high], 1).astype(np.float32)
    keys = ("flip_pairs", "flip_indices", "upper_body_ids", "lower_body_ids")
    return _through(
        of,
        dict(
            _read(rng, of, index),
            **{key: meta[key] for key in (*keys, "dataset_name", "skeleton_links")},
            dataset_keypoint_weights=meta["dataset_keypoint_weights"],
            bbox=boxes,
            bbox_score=np.ones(n, np.float32),
            keypoints=inside.astype(np.float32),
            keypoints_visible=np.ones((n, points), np.float32),
            num_keypoints=np.full(n, points),
            area=np.full(n, of.size**2 / 4, np.float32),
            category_id=[1] * n,
            id=[index * n + i for i in range(n)],
            iscrowd=0,
            crowd_index=0,
        ),
    )


def _text_boxes(rng: np.random.Generator, of: RandomSamples, index: int) -> Item:
    boxes = _corners(rng, of.size, 3)
    polygons = [np.array([a, b, c, b, c, d, a, d], np.float32) for a, b, c, d in boxes]
    return _through(
        of,
        dict(
            _read(rng, of, index),
            gt_polygons=polygons,
            gt_bboxes=boxes,
            gt_bboxes_labels=np.zeros(3, np.int64),
            gt_ignored=np.zeros(3, bool),
            gt_texts=["text"] * 3,
        ),
    )


def _text(rng: np.random.Generator, of: RandomSamples, index: int) -> Item:
    results = _read(rng, of, index)
    if "grayscale" in str(of.cfg.train_pipeline):
        results["img"] = results["img"][..., :1]
    return _through(of, dict(results, gt_texts=[["one", "two"][index % 2]]))


MAKERS: dict[str, Callable[[np.random.Generator, RandomSamples, int], Item]] = {
    "boxes": _boxes,
    "rotated boxes": _rotated,
    "pixels": _pixels,
    "label": _label,
    "views": _views,
    "keypoints": _keypoints,
    "clip": _clip,
    "skeleton": _skeleton,
    "text boxes": _text_boxes,
    "text": _text,
    "scan": scan,
    "camera": camera,
}
