"""The classes of the data set, as a config and a runner know them."""

import pytest

from amp_hooks.config_check.classes import (
    classes_string,
    num_classes,
    number_of_classes,
)
from amp_hooks.config_check.facts import Facts


def found(model, dataset):
    cfg = dict(model=model, train_dataloader=dict(dataset=dataset))
    known = dict(CocoDataset=80, VOCDataset=20, CocoPanopticDataset=133)
    facts = Facts(classes=number_of_classes(dataset, known.get))
    return [f for rule in (classes_string, num_classes) for f in rule(cfg, facts)]


def coco(*classes, **more):
    given = dict(metainfo=dict(classes=tuple(classes))) if classes else {}
    return {"type": "CocoDataset", **given, **more}


def head(n, **more):
    return dict(bbox_head=dict(num_classes=n, **more))


def mask2former(things, stuff):
    weights = [1.0] * (things + stuff) + [0.1]
    numbers = dict(num_things_classes=things, num_stuff_classes=stuff)
    head = dict(numbers, loss_cls=dict(class_weight=weights))
    return dict(panoptic_head=head, panoptic_fusion_head=numbers)


@pytest.mark.parametrize(
    ("model", "dataset", "told"),
    [
        (head(80), coco(), None),
        (head(2), coco("a", "b"), None),
        (
            head(80),
            coco("a", "b"),
            "model.bbox_head.num_classes=80, and the data set to",
        ),
        (head(1), coco("a", "b"), "model.bbox_head.num_classes=1"),
        (dict(roi_head=head(80)), coco("a"), "model.roi_head.bbox_head.num_classes=80"),
        (
            dict(bbox_head=dict(head_module=dict(num_classes=80))),
            coco("a"),
            "model.bbox_head.head_module.num_classes=80",
        ),
        (
            dict(roi_head=dict(point_head=dict(num_classes=80), **head(1))),
            coco("a"),
            "model.roi_head.point_head.num_classes=80",
        ),
        (dict(auxiliary_head=dict(num_classes=2)), coco("a", "b", "c"), None),
        (dict(roi_head=dict(attr_head=dict(num_classes=400))), coco("a"), None),
        (dict(teacher=head(365)), coco("a"), None),
        (
            dict(bbox_head=dict(num_classes=1, loss_cls=dict(num_classes=1203))),
            coco("a"),
            "model.bbox_head.loss_cls.num_classes=1203",
        ),
        (
            dict(roi_head=dict(bbox_head=[dict(num_classes=n) for n in (3, 80)])),
            coco("a", "b", "c"),
            "model.roi_head.bbox_head.1.num_classes=80",
        ),
        (dict(detector=head(80)), coco("a"), "model.detector.bbox_head.num_classes=80"),
        (dict(mask_head=dict(num_classes=20)), dict(type="VOCDataset"), None),
        (dict(mask_head=dict(num_classes=80)), dict(type="VOCDataset"), "80"),
        # Wrapped, and several that agree or not.
        (head(80), dict(type="RepeatDataset", dataset=coco("a")), "80"),
        (
            head(80),
            dict(type="ConcatDataset", datasets=[coco("a"), coco("b")]),
            "80",
        ),
        (head(80), dict(datasets=[coco("a"), coco("b", "c")]), None),
        # Not known, or not the same thing.
        (head(80), dict(type="MyDataset"), None),
        (head(256, type="GroundingDINOHead"), coco("a"), None),
        (dict(rpn_head=dict(num_classes=1)), coco("a", "b"), None),
        (
            dict(roi_head=dict(mask_head=dict(num_classes=1, class_agnostic=True))),
            coco("a", "b"),
            None,
        ),
        (None, coco("a"), None),
        # Things and stuff.
        (mask2former(80, 53), dict(type="CocoPanopticDataset"), None),
        (mask2former(80, 0), coco(), None),
        (
            mask2former(80, 53),
            coco("a", "b"),
            "model.panoptic_head.num_things_classes + num_stuff_classes=133",
        ),
        (mask2former(80, 53), coco("a", type="MyPanoptic"), "=133"),
        (head(80), dict(type="CocoPanopticDataset"), None),
    ],
)
def test_num_classes(model, dataset, told):
    findings = found(model, dataset)
    assert [f.name for f in findings] == ["num_classes"] * (told is not None)
    if told:
        assert told in findings[0].what


def test_fewer_classes_than_labels_fail():
    (few,) = found(head(1), coco("a", "b"))
    (many,) = found(head(9), coco("a", "b"))
    assert (few.fails, many.fails) == (True, False)
    assert few.lines == "model = dict(bbox_head=dict(num_classes=2))"


def test_things_and_stuff_with_their_weights():
    (finding,) = found(mask2former(80, 53), coco("a", "b"))
    made = {}
    exec(finding.lines, {}, made)
    panoptic = made["model"]["panoptic_head"]
    assert panoptic == mask2former(2, 0)["panoptic_head"]
    assert "panoptic_fusion_head" in made["model"]


def test_a_string_is_no_tuple_of_one():
    string = dict(type="CocoDataset", metainfo=dict(classes=("hole")))
    first, second = found(head(80), string)
    assert first.name == "classes_string"
    assert first.fails
    assert "its 4 letters are taken for 4 classes" in first.what
    made = {}
    exec(first.lines, {}, made)
    right = made["train_dataloader"]["dataset"]["metainfo"]["classes"]
    assert right == ("hole",)
    assert second.lines == "model = dict(bbox_head=dict(num_classes=1))"
    assert [f.name for f in found(head(1), string)] == ["classes_string"]


@pytest.mark.parametrize(
    ("use", "words"), [("val", "validate on"), ("test", "test on")]
)
def test_a_string_of_another_data_set(use, words):
    string = dict(type="CocoDataset", metainfo=dict(classes=("hole")))
    cfg = dict(train_dataloader=dict(dataset=coco("hole")))
    cfg[f"{use}_dataloader"] = dict(dataset=dict(type="RepeatDataset", dataset=string))
    (finding,) = classes_string(cfg, Facts())
    assert f"of the data set to {words} is a string" in finding.what
    assert finding.lines.startswith(f"{use}_dataloader = ")


def test_the_name_that_classes_had_before_is_not_read():
    """Nor by MMDetection 3: its CocoDataset has 80 classes then."""
    before = dict(type="CocoDataset", metainfo=dict(CLASSES=("a", "b")))
    (finding,) = found(head(2), before)
    assert "model.bbox_head.num_classes=2, and the data set" in finding.what
    assert finding.fails


def test_a_file_of_names_is_none(tmp_path):
    (tmp_path / "names").write_text("a")
    for name in ("names.txt", str(tmp_path / "names")):
        dataset = dict(type="CocoDataset", metainfo=dict(classes=name))
        assert found(head(80), dataset) == []
