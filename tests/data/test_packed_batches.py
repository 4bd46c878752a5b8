"""Batches whose boxes lie in one table, as mmyolo's; and those that cannot be read."""

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.registry import FUNCTIONS
from mmengine.structures import BaseDataElement, InstanceData

from amp_hooks.data.box_check import check_boxes, layout_of
from amp_hooks.engine.batches import BatchView
from tests import helpers
from tests.small import Small, build, ledger

ROWS = [
    [0, 1, 2.0, 2.0, 9.0, 9.0],
    [0, 2, float("nan"), 0.0, 5.0, 5.0],
    [1, 0, 3.0, 3.0, 3.0, 9.0],
    [2, 0, 1.0, 1.0, 8.0, 8.0],
    [2, 3, 60.0, 1.0, 68.0, 8.0],
]
METAS = [dict(img_path=f"{name}.jpg", img_id=i) for i, name in enumerate("abcd")]


def batch(form="dict", rows=ROWS, metas=METAS, inputs=None):
    table = torch.tensor(rows)
    inputs = torch.zeros(4, 3, 32, 64, dtype=torch.uint8) if inputs is None else inputs
    if form == "table":
        return dict(inputs=inputs, data_samples=table)
    samples = dict(bboxes_labels=table, keypoints=torch.arange(len(rows)))
    if metas:
        samples["img_metas"] = metas
    return dict(inputs=inputs, data_samples=samples)


LISTED = [torch.zeros(3, 32, 64)] * 4  # use_ms_training


@pytest.mark.parametrize("inputs", [None, LISTED], ids=["stacked", "listed"])
@pytest.mark.parametrize("form", ["dict", "table"])
def test_boxes_are_read(form, inputs):
    images, odd = check_boxes(batch(form, inputs=inputs), 0.01)
    named = "abc" if form == "dict" else range(3)
    names = [
        f"{n}.jpg" if form == "dict" else f"sample {n} of the batch" for n in named
    ]
    assert {image.name: image.counts for image in images} == {
        names[0]: dict(not_finite=1),
        names[1]: dict(zero=1),
        # 64 wide, so the fifth is inside; 32 would be too small for it.
    }
    assert not odd


def test_the_size_of_an_image_is_that_of_its_input():
    narrow = torch.zeros(4, 3, 32, 32)
    images, _ = check_boxes(batch(inputs=narrow), 0.01)
    assert images[-1].counts == dict(outside=1)


@pytest.mark.parametrize("form", ["dict", "table"])
def test_boxes_are_left_out_with_all_that_belongs_to_them(form):
    whole = batch(form)
    images, _ = check_boxes(whole, 0.01)
    for image in images:
        image.drop()
    samples = whole["data_samples"]
    table = samples if form == "table" else samples["bboxes_labels"]
    assert torch.equal(table, torch.tensor(ROWS)[[0, 3, 4]])
    if form == "dict":
        assert samples["keypoints"].tolist() == [0, 3, 4]
        assert samples["img_metas"] == METAS
    assert not check_boxes(whole, 0.01)[0]


def test_rotated_boxes_are_odd():
    images, odd = check_boxes(batch(rows=[[*row, 0.1] for row in ROWS]), 0.01)
    assert not images
    assert odd == {"Tensor of shape (5,)"}


def test_images_are_named_where_the_batch_names_them():
    assert BatchView(batch()).images() == {m["img_path"]: m["img_id"] for m in METAS}
    assert BatchView(batch(metas=None)).images() == {}
    assert BatchView(batch("table")).images() == {}


def test_no_box_at_all():
    empty = batch()
    empty["data_samples"]["bboxes_labels"] = torch.zeros(0, 6)
    assert check_boxes(empty, 0.01) == ([], set())


# --- in a run -------------------------------------------------------------------------


class Net(Small):
    def forward(self, inputs, data_samples, mode="loss"):
        y = torch.arange(len(inputs)) % 4
        return super().forward(torch.stack(list(inputs)).flatten(1)[:, :8], y, mode)


@FUNCTIONS.register_module()
def packs(samples):
    """As yolov5_collate; the first image of each batch has a box of no width."""
    rows = [[i, 0, 1.0, 1.0, 1.0 + (i > 0), 2.0] for i in range(len(samples))]
    metas = [dict(img_path=f"{s['y']}.jpg") for s in samples]
    table = dict(bboxes_labels=torch.tensor(rows), img_metas=metas)
    inputs = torch.stack([s["x"].reshape(1, 2, 4) for s in samples])
    return dict(inputs=inputs, data_samples=table)


@FUNCTIONS.register_module()
def as_targets(samples):
    """Of torchvision: a layout that is not known here."""
    batch = packs(samples)
    targets = [dict(boxes=torch.zeros(1, 4)) for _ in samples]
    return dict(inputs=batch["inputs"], data_samples=targets)


@FUNCTIONS.register_module()
def of_3d(samples):
    batch = packs(samples)
    return dict(
        inputs=batch["inputs"],
        data_samples=[BaseDataElement(metainfo=dict(img_path="a")) for _ in samples],
    )


@FUNCTIONS.register_module()
def background(samples):
    """No box for long, but in a place that is known."""
    instances = InstanceData(bboxes=torch.zeros(0, 4))
    sample = DetDataSample(metainfo=dict(img_path="a"), gt_instances=instances)
    return dict(inputs=packs(samples)["inputs"], data_samples=[sample] * len(samples))


@FUNCTIONS.register_module()
def of_pixels(samples):
    sample = BaseDataElement(metainfo=dict(img_path="a"))
    sample.gt_sem_seg = BaseDataElement(data=torch.zeros(1, 8, 8))
    return dict(inputs=packs(samples)["inputs"], data_samples=[sample] * len(samples))


def run(tmp_path, collate, iters=20, **boxes):
    hooks = [dict(type="amp_hooks.StabilityHook", boxes=boxes, preflight=None)]
    runner = build(tmp_path, hooks, model=Net, iters=iters, log_level="WARNING")
    runner._train_dataloader["collate_fn"] = dict(type=collate)
    runner.train()
    return runner


BLIND = "BoxSanityHook has seen no ground-truth boxes in 10 batches"
NAMELESS = "BadBatchHook: the batch has no image names"


@pytest.mark.parametrize("action", ["warn", "drop"])
def test_a_run_on_packed_batches_names_bad_boxes(tmp_path, action):
    runner = run(tmp_path, "packs", action=action)
    lines = ledger(runner, "boxes")
    assert len(lines) == 20
    assert all(line["counts"] == dict(zero=1) for line in lines)
    assert all(image.endswith(".jpg") for line in lines for image in line["images"])
    assert BLIND not in helpers.log(runner)
    assert NAMELESS not in helpers.log(runner)


@pytest.mark.parametrize("collate", ["as_targets", "of_3d"])
def test_a_layout_without_boxes_that_can_be_read_is_told_once(tmp_path, collate):
    log = helpers.log(run(tmp_path, collate))
    assert log.count(BLIND) == 1
    assert "in dict(inputs: Tensor, data_samples: list of" in log
    assert log.count(NAMELESS) == (collate == "as_targets")


def test_another_task_is_no_unknown_layout(tmp_path):
    """As mmseg's and mmpose's samples: there are no boxes, which is no warning."""
    assert BLIND not in helpers.log(run(tmp_path, "of_pixels"))


def test_images_of_background_are_no_unknown_layout(tmp_path):
    assert BLIND not in helpers.log(run(tmp_path, "background"))


def test_layouts_in_words():
    assert layout_of([1, 2]) == "list"
    assert layout_of(batch()) == (
        "dict(inputs: Tensor, data_samples: dict(bboxes_labels: Tensor, keypoints: "
        "Tensor, img_metas: list))"
    )
