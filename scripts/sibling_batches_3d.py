"""Random samples for MMDetection3D: clouds of points, and images of one camera."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import torch
from mmengine.structures import InstanceData


def scan(rng: np.random.Generator, of: Any, index: int) -> dict:
    """A cloud of points within the range that the config is for, and boxes in it."""
    low, high = _range(of.cfg)
    dims = of.cfg.get("point_dims", 4)
    points = rng.uniform(0, 1, (2000, dims))
    points[:, :3] = low + points[:, :3] * (high - low)
    center = low + rng.uniform(0.2, 0.8, (4, 3)) * (high - low)
    boxes = _boxes(rng, center, of.cfg.get("box_dims", 7))
    kinds = importlib.import_module("mmdet3d.structures")
    sample = _sample(
        kinds,
        dict(box_type_3d=kinds.LiDARInstance3DBoxes, box_mode_3d=kinds.Box3DMode.LIDAR),
        kinds.LiDARInstance3DBoxes(boxes, box_dim=boxes.shape[1]),
        torch.tensor(rng.integers(of.classes, size=len(boxes))),
    )
    cloud = torch.tensor(points, dtype=torch.float32)
    return dict(inputs=dict(points=cloud), data_samples=sample)


def camera(rng: np.random.Generator, of: Any, index: int) -> dict:
    """An image, and boxes in front of its camera."""
    size, focal = of.size, float(of.size)
    depths = rng.uniform(5, 20, 4)
    seen = rng.uniform(0.3, 0.7, (4, 2)) * size  # centers in the image
    center = np.concatenate(
        [(seen - size / 2) * depths[:, None] / focal, depths[:, None]], 1
    )
    boxes = _boxes(rng, center, of.cfg.get("box_dims", 7))
    half = rng.uniform(0.1, 0.2, (4, 2)) * size
    kinds = importlib.import_module("mmdet3d.structures")
    camera = [[focal, 0, size / 2, 0], [0, focal, size / 2, 0], [0, 0, 1, 0]]
    camera = [*camera, [0, 0, 0, 1]]
    shape = (size, size)
    meta = dict(
        img_path=f"{index}.png",
        img_shape=shape,
        ori_shape=shape,
        pad_shape=shape,
        scale_factor=np.ones(2, np.float32),
        cam2img=camera,
        trans_mat=np.array([[0.25, 0, 0], [0, 0.25, 0], [0, 0, 1]], np.float32),
        lidar2img=np.array(camera, np.float32),
        affine_aug=False,
        box_type_3d=kinds.CameraInstance3DBoxes,
        box_mode_3d=kinds.Box3DMode.CAM,
    )
    labels = torch.tensor(rng.integers(of.classes, size=4))
    own = kinds.CameraInstance3DBoxes(
        boxes, box_dim=boxes.shape[1], origin=(0.5, 0.5, 0.5)
    )
    sample = _sample(kinds, meta, own, labels)
    more = dict(
        centers_2d=torch.tensor(seen, dtype=torch.float32),
        depths=torch.tensor(depths, dtype=torch.float32),
        attr_labels=torch.tensor(rng.integers(9, size=4)),
    )
    for name, value in more.items():
        setattr(sample.gt_instances_3d, name, value)
    corners = np.concatenate([seen - half, seen + half], 1)
    flat = torch.tensor(corners, dtype=torch.float32)
    sample.gt_instances = InstanceData(bboxes=flat, labels=labels)
    image = torch.tensor(rng.integers(256, size=(3, size, size)), dtype=torch.uint8)
    return dict(inputs=dict(img=image), data_samples=sample)


def _boxes(rng: np.random.Generator, center: np.ndarray, dims: int) -> torch.Tensor:
    sizes = rng.uniform(1, 4, (len(center), 3))
    rest = rng.uniform(-0.5, 0.5, (len(center), dims - 6))  # angle, velocity
    return torch.tensor(np.concatenate([center, sizes, rest], 1), dtype=torch.float32)


def _sample(kinds: Any, meta: dict, boxes: Any, labels: torch.Tensor) -> Any:
    sample = kinds.Det3DDataSample(metainfo=meta)
    sample.gt_instances_3d = InstanceData(bboxes_3d=boxes, labels_3d=labels)
    return sample


def _range(cfg: Any) -> tuple[np.ndarray, np.ndarray]:
    low_high = np.array(cfg.get("point_cloud_range", [0, -40, -3, 70, 40, 1]))
    return low_high[:3], low_high[3:]
