"""What the packages' own samples are to the hooks that look at batches."""

import math

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData

from amp_hooks.data.box_check import check_boxes
from amp_hooks.engine.batches import BatchView
from tests import helpers

GOOD = [30.0, 30.0, 20.0, 10.0, 0.5]
FLAWED = [
    [30.0, 30.0, 20.0, 0.0, 0.5],
    [30.0, 30.0, -20.0, 10.0, 0.5],
    [math.nan, 30.0, 20.0, 10.0, 0.5],
    [30.0, 30.0, 20.0, 10.0, math.nan],
    [300.0, 30.0, 20.0, 10.0, 0.5],
]


def rotated(rows, kind):
    bbox = pytest.importorskip("mmrotate.structures.bbox")
    boxes = bbox.RotatedBoxes(torch.tensor(rows))
    boxes = boxes if kind == "rbox" else boxes.convert_to(kind)
    instances = InstanceData(bboxes=boxes, labels=torch.arange(len(rows)))
    meta = dict(img_path="a.png", img_shape=(64, 64))
    return DetDataSample(metainfo=meta, gt_instances=instances)


def test_rotated_boxes():
    (image,), odd = check_boxes([rotated([GOOD, *FLAWED], "rbox")], 0.01)
    assert not odd
    assert image.counts == dict(zero=1, negative=1, not_finite=2, outside=1)
    image.drop()
    left = image.sample.gt_instances
    assert left.labels.tolist() == [0]
    assert left.bboxes.tensor.tolist()[0] == pytest.approx(GOOD)


@pytest.mark.filterwarnings("error")
def test_quadrilaterals():
    flat, out = FLAWED[0], FLAWED[4]
    (image,), odd = check_boxes([rotated([GOOD, flat, out], "qbox")], 0.01)
    assert not odd
    assert set(image.counts) <= {"zero", "sub_pixel", "outside"}
    assert sum(image.counts.values()) == 2


def names(package, family):
    sweep = pytest.importorskip("sweep_siblings")
    pytest.importorskip(package)
    chosen = sweep.SIBLINGS[package][family]
    cfg = sweep.make_config(package, chosen)
    loader = cfg.get("train_dataloader") or {}
    samples = sweep.RandomSamples(chosen.data, cfg, chosen.size, 3)
    collate = loader.get("collate_fn", dict(type="pseudo_collate"))["type"]
    from mmengine.registry import FUNCTIONS, DefaultScope

    with DefaultScope.overwrite_default_scope(package):
        batch = FUNCTIONS.get(collate)([samples[0], samples[1]])
    return list(BatchView(batch).images())


@pytest.mark.parametrize(
    ("package", "family"),
    [
        ("mmseg", "fcn"),
        ("mmpretrain", "resnet"),
        ("mmpretrain", "mae"),
        ("mmpose", "heatmap"),
        ("mmrotate", "rotated_retinanet"),
        ("mmaction", "tsn"),
        ("mmocr", "dbnet"),
    ],
)
def test_images_are_named(package, family, monkeypatch):
    monkeypatch.syspath_prepend(str(helpers.ROOT / "scripts"))
    assert names(package, family) == ["0.png", "1.png"]


def test_numpy_boxes_of_a_pose_are_no_boxes_of_this_image():
    """mmpose's are those of the image before it was cropped."""
    instances = InstanceData(bboxes=np.array([[500.0, 500, 600, 600]]))
    sample = DetDataSample(metainfo=dict(img_shape=(64, 64)))
    sample.gt_instances = instances
    assert check_boxes([sample], 0.01) == ([], set())
