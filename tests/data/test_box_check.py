"""Batches of every form, as mmdet's own classes make them."""

import math

import numpy as np
import pytest
import torch
from mmdet import structures
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import BaseBoxes, HorizontalBoxes
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from mmengine.structures import InstanceData

from amp_hooks.data.box_check import check_boxes
from tests.count_reads import CountReads

SOUND = [2.0, 2.0, 9.0, 9.0]
ZERO = [5.0, 5.0, 5.0, 9.0]
NAN = [math.nan] * 4
FAR = [50.0, 5.0, 60.0, 9.0]
OUT = [-8.0, -8.0, 15.0, 15.0]  # sticks out
SQUARE = np.array([2.0, 2, 9, 2, 9, 9, 2, 9])
LINE = np.array([2.0, 2, 5, 5, 9, 9])


def sample(rows, name="a.jpg", kind=HorizontalBoxes, **fields):
    instances = InstanceData()
    rows = torch.tensor(rows).reshape(len(rows), -1 if rows else 4)
    instances.bboxes = kind(rows) if kind else rows
    instances.labels = torch.arange(len(rows))
    for key, value in fields.items():
        instances[key] = value
    ignored = InstanceData(bboxes=HorizontalBoxes(torch.tensor([ZERO])))
    result = DetDataSample(
        gt_instances=instances, metainfo=dict(img_path=name, img_shape=(12, 12))
    )
    result.ignored_instances = ignored
    return result


def found(batch, min_size=1.0):
    images, _ = check_boxes(batch, min_size)
    return {image.name: image.counts for image in images}


@pytest.mark.parametrize("kind", [HorizontalBoxes, None], ids=["BoxType", "tensor"])
def test_over_the_images_of_a_batch(kind):
    batch = dict(
        inputs=[torch.zeros(3, 12, 12)] * 3,
        data_samples=[
            sample([SOUND, ZERO, NAN], "a.jpg", kind),
            sample([SOUND, OUT], "b.jpg", kind),
            sample([FAR, SOUND, FAR], "c.jpg", kind),
        ],
    )
    assert found(batch) == {
        "a.jpg": dict(zero=1, not_finite=1),
        "c.jpg": dict(outside=2),
    }


@pytest.mark.skipif(
    not hasattr(structures, "TrackDataSample"), reason="MMDetection 3.0 has no videos"
)
def test_branches_frames_tuples_and_samples_without_boxes():
    video = structures.TrackDataSample()
    video.video_data_samples = [sample([SOUND], "f0.jpg"), sample([ZERO], "f1.jpg")]
    empty = sample(np.zeros((0, 4)).tolist(), "e.jpg", None)
    samples = dict(
        sup=[sample([ZERO], "s.jpg"), None],
        unsup_student=(None, sample([NAN, NAN], "u.jpg")),
        rest=[video, empty, DetDataSample(), 3, "text"],
    )
    assert found(dict(inputs={}, data_samples=samples)) == {
        "s.jpg": dict(zero=1),
        "u.jpg": dict(not_finite=2),
        "f1.jpg": dict(zero=1),
    }
    for batch in (None, [], {}, torch.ones(3), dict(data_samples=None), [empty]):
        assert found(batch) == {}


def test_boxes_that_are_trained_on_where_the_annotations_are_arrays():
    """MMPose's YOLOX-Pose and RTMO."""
    pose = sample([SOUND])
    pose.gt_instances = InstanceData(bboxes=np.array([SOUND, ZERO, SOUND]))
    pose.gt_instance_labels = sample([SOUND, ZERO, NAN]).gt_instances
    ((image,), odd) = check_boxes(dict(data_samples=[pose]), 1.0)
    assert not odd
    assert image.counts == dict(zero=1, not_finite=1)
    image.drop()
    assert pose.gt_instance_labels.labels.tolist() == [0]
    assert len(pose.gt_instances.bboxes) == 3


def test_without_name_and_size():
    nameless = DetDataSample(gt_instances=sample([SOUND, FAR, ZERO]).gt_instances)
    assert found([nameless]) == {"sample 0 of the batch": dict(zero=1)}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, int])
def test_other_types_of_numbers(dtype):
    dtype = torch.int64 if dtype is int else dtype
    one = sample([SOUND, ZERO], kind=None)
    one.gt_instances.bboxes = one.gt_instances.bboxes.to(dtype)
    two = sample([FAR], "b.jpg")
    assert found([one, two]) == {"a.jpg": dict(zero=1), "b.jpg": dict(outside=1)}


class RotatedBoxes(BaseBoxes):
    box_dim = 5
    # What is abstract is of no use here.
    __abstractmethods__ = frozenset()


for name in BaseBoxes.__abstractmethods__:
    setattr(RotatedBoxes, name, None)
RotatedBoxes.__abstractmethods__ = frozenset()


def test_rotated_boxes_are_passed_over():
    rotated = sample([[5.0, 5.0, 0.0, 0.0, 0.3]], "r.jpg", RotatedBoxes)
    images, odd = check_boxes([rotated, sample([ZERO])], 1.0)
    assert [image.name for image in images] == ["a.jpg"]
    assert odd == {"RotatedBoxes of shape (5,)"}


class Turned(RotatedBoxes):
    """As mmrotate's: centre, sides and an angle; here a quarter turn."""

    @property
    def widths(self):
        return self.tensor[:, 2]

    @property
    def heights(self):
        return self.tensor[:, 3]

    def convert_to(self, kind):
        assert kind == "hbox"
        x, y, w, h, angle = self.tensor.unbind(1)
        w, h = h + 0 * angle, w
        around = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 1)
        return HorizontalBoxes(around)


def test_rotated_boxes_by_their_own_sides():
    rows = [
        [5.0, 5.0, 4.0, 2.0, 0.3],
        [5.0, 5.0, 4.0, 0.0, 0.3],
        [5.0, 5.0, -4.0, 2.0, 0.3],
        [5.0, 5.0, 4.0, 0.5, 0.3],
        [5.0, 5.0, 4.0, 2.0, math.nan],
        [50.0, 5.0, 4.0, 2.0, 0.3],
    ]
    batch = [sample([SOUND, ZERO]), sample(rows, "r.jpg", Turned), sample([FAR], "b")]
    images, odd = check_boxes(batch, 1.0)
    assert not odd
    assert {image.name: image.counts for image in images} == {
        "a.jpg": dict(zero=1),
        "b": dict(outside=1),
        "r.jpg": dict(zero=1, negative=1, sub_pixel=1, not_finite=1, outside=1),
    }
    (image,) = [image for image in images if image.name == "r.jpg"]
    assert "(5, 5, 4, 0, 0.3)" in image.words(1.0)[0]
    image.drop()
    (left,) = image.sample.gt_instances.bboxes.tensor.tolist()
    assert left == pytest.approx(rows[0])


def bitmaps(full):
    masks = np.zeros((len(full), 12, 12), np.uint8)
    masks[np.array(full), 3:6, 3:6] = 1
    return BitmapMasks(masks, 12, 12)


def polygons(full):
    return PolygonMasks([[LINE, SQUARE] if f else [LINE] for f in full], 12, 12)


def tensors(full):
    return torch.tensor(full)[:, None, None].repeat(1, 12, 12)


def content(masks):
    """As plain lists."""
    if isinstance(masks, PolygonMasks):
        return [[p.tolist() for p in polygons] for polygons in masks.masks]
    return getattr(masks, "masks", masks).tolist()


@pytest.mark.parametrize("make", [bitmaps, polygons, tensors])
@pytest.mark.parametrize("kind", [HorizontalBoxes, None], ids=["BoxType", "tensor"])
@pytest.mark.parametrize(
    "rows",
    [[SOUND, ZERO, SOUND, NAN, SOUND], [ZERO] * 5, [SOUND] * 5],
    ids=["some", "all", "by their masks"],
)
def test_whatever_belongs_to_a_dropped_instance_goes_with_it(make, kind, rows):
    full = [True, True, False, True, True]
    one = sample(
        rows,
        kind=kind,
        masks=make(full),
        names=list("abcde"),
        weights=np.arange(5.0),
        keypoints=torch.arange(30).reshape(5, 3, 2),
    )
    before = one.gt_instances
    (image,), _ = check_boxes([one], 1.0)
    good = [i for i in range(5) if rows[i] == SOUND and full[i]]
    assert image.counts["empty_mask"] == (rows[2] == SOUND)
    image.drop()
    after = one.gt_instances
    assert set(after.keys()) == set(before.keys())
    assert len(after) == len(good)
    assert type(after.bboxes) is type(before.bboxes)
    assert type(after.masks) is type(before.masks)
    assert after.labels.tolist() == good
    # mmengine leaves an empty list where nothing is left.
    assert list(after.names) == ["abcde"[i] for i in good]
    assert after.weights.tolist() == good
    assert torch.equal(after.keypoints, before.keypoints[good])
    assert after.bboxes.shape == (len(good), 4)
    assert len(after.masks) == len(good)
    assert content(after.masks) == [content(before.masks)[i] for i in good]
    assert len(one.ignored_instances) == 1  # a crowd's box may look as it likes
    assert found([one]) == {}


def test_fields_that_cannot_be_indexed_are_an_error_of_drop():
    one = sample([SOUND, ZERO])
    object.__setattr__(one.gt_instances, "odd", {1, 2})
    one.gt_instances._data_fields.add("odd")
    (image,), _ = check_boxes([one], 1.0)
    with pytest.raises(ValueError, match="odd"):
        image.drop()
    assert len(one.gt_instances.labels) == 2


def test_boxes_in_host_memory_are_read_in_place():
    batch = [sample([SOUND, ZERO], kind=kind) for kind in (HorizontalBoxes, None)]
    with CountReads() as mode:
        check_boxes(batch, 1.0)
    assert mode.reads == 0


def test_a_sample_that_is_there_twice_is_dropped_from_once():
    twice = sample([SOUND, ZERO], "a.jpg")
    images, _ = check_boxes(dict(data_samples=[twice, twice]), 1.0)
    assert [image.counts for image in images] == [dict(zero=1)]
    images[0].drop()
    assert len(twice.gt_instances) == 1
