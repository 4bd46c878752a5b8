"""Every defect that is planted in a COCO file is found, and no other."""

import copy
import json

import pytest

from amp_hooks.data.coco import NotCocoError, check_coco, without_findings
from amp_hooks.data.coco_records import KINDS
from tests.data.coco_made import PLANTS, healthy, plant, plant_images


@pytest.fixture(scope="module")
def large():
    return healthy()


def found(data, **options):
    report = check_coco(data, **options)
    return {k: v for k, v in report.found.items() if v and not KINDS[k].note}


def notes(data, **options):
    report = check_coco(data, **options)
    return {k: v for k, v in report.found.items() if v and KINDS[k].note}


@pytest.mark.long
@pytest.mark.slow
def test_exactly_what_was_planted_in_a_hundred_thousand(large):
    assert len(large["annotations"]) == 100_000
    assert found(large) == {}
    data, planted = plant(large)
    before = copy.deepcopy(data)
    report = check_coco(data)
    assert planted.keys() == PLANTS.keys()
    assert {k: report.found[k] for k in planted} == planted
    bad = {i for places in planted.values() for i in places}
    assert report.findings("annotations") == bad
    assert report.findings("images") == report.findings("categories") == set()
    assert str(data) == str(before)

    fixed = without_findings(data, report)
    left = [a for i, a in enumerate(large["annotations"]) if i not in bad]
    assert fixed == {**large, "annotations": left}
    assert list(fixed) == list(large)
    assert found(fixed) == {}


def test_images_and_categories():
    data, planted = plant_images(healthy(30, 500))
    data["categories"] += [
        dict(id=1, name="other"),
        dict(id=50, name="3"),
        dict(name="no id"),
        dict(id=51),
        "text",
    ]
    data["annotations"][20]["category_id"] = 50
    expected = {
        "category_record": [12, 13, 14],
        "duplicate_category": [10, 11],
        **planted,
        "unknown_category": [20],
    }
    assert found(data) == expected
    fixed = without_findings(data, check_coco(data))
    clean = healthy(30, 500)
    clean["annotations"].pop(20)
    assert fixed == clean


def test_annotations_of_an_image_that_is_left_out_go_with_it():
    data = healthy(5, 200)
    del data["images"][2]["width"]
    report = check_coco(data)
    assert report.findings("annotations") == set()
    fixed = without_findings(data, report)
    assert [a["image_id"] for a in fixed["annotations"]] == [
        a["image_id"] for a in data["annotations"] if a["image_id"] != 9
    ]
    assert found(fixed) == {}


def test_missing_files():
    data = healthy(5, 50)
    there = {image["file_name"] for image in data["images"]} - {"000003.jpg"}
    assert found(data, exists=there.__contains__) == {"missing_file": [3]}
    there.add("000003.jpg")
    assert found(data, exists=there.__contains__) == {}


def test_a_file_for_plain_detection_has_no_masks():
    data = healthy(30, 500, masks=False)
    for a in data["annotations"][::2]:
        a["segmentation"] = []
    assert found(data) == {}


@pytest.mark.parametrize("empty", [[], [[]], None])
def test_a_box_without_a_mask_is_a_note_where_others_have_one(empty):
    data = healthy(30, 500, seed=3)
    for a in data["annotations"]:
        if not a["iscrowd"]:
            a["segmentation"] = empty
    data["annotations"][7]["segmentation"] = []  # the crowd's
    assert found(data) == {}
    assert "no_mask" not in notes(data)
    data["annotations"][3]["segmentation"] = [[5, 5, 9, 5, 9, 9]]
    assert found(data) == {}
    assert notes(data)["no_mask"] == [i for i in range(500) if i not in (3, 7)]


def test_lvis_has_addresses_in_the_place_of_names():
    data = healthy(30, 500)
    for image in data["images"]:
        name = image.pop("file_name")
        image["coco_url"] = f"http://images.cocodataset.org/train2017/{name}"
    assert found(data) == {}
    there = {f"train2017/{i:06d}.jpg" for i in range(1, 30)}
    assert found(data, exists=there.__contains__) == {"missing_file": [0]}


def test_a_crowd_s_box_is_finite_too():
    data = healthy(30, 500)
    data["annotations"][7]["bbox"][0] = float("nan")
    assert found(data) == {"not_finite": [7]}


def test_whole_numbers_may_be_written_with_a_point():
    data = json.loads(json.dumps(healthy(30, 500)))
    for a in data["annotations"]:
        a["image_id"] = float(a["image_id"])
    assert found(data) == {}


def test_the_smallest_size_is_the_users():
    data = healthy(30, 500)
    data["annotations"][3]["bbox"][2] = 0.5
    assert found(data) == {"sub_pixel": [3]}
    assert found(data, min_size=0.5) == {}


def test_notes_are_no_findings():
    data = healthy(30, 500, seed=3)
    last = dict(data["annotations"][10], id=9999)
    data["annotations"].append(last)
    data["annotations"][11].update(bbox=[600, 5, 50.0, 50], area=2000)
    data["annotations"][12]["area"] = 10**6
    data["annotations"][13]["segmentation"].append([1, 1, 2, 2, 3, 3])
    data["images"].append(dict(id=1, file_name="z.jpg", height=5, width=5))
    report = check_coco(data)
    assert report.clean
    assert notes(data) == {
        "sticks_out": [11],
        "odd_area": [12],
        "bad_polygon": [13],
        "duplicate_box": [500],
        "no_annotation": [30],
    }
    assert without_findings(data, report) == data


def test_masks_in_run_lengths():
    mask_utils = pytest.importorskip("pycocotools.mask")
    import numpy as np

    data = healthy(3, 20)
    mask = np.zeros((640, 640), np.uint8, order="F")
    for k, full in enumerate([False, True, True, False]):
        mask[:] = 0
        mask[0 if k == 2 else 100 : 300, 0 if k == 2 else 50 : 60] = full
        rle = mask_utils.encode(mask)
        rle["counts"] = rle["counts"].decode()
        data["annotations"][k]["segmentation"] = rle
    assert found(data) == {"empty_mask": [0, 3]}
    plain = [640 * 640 - 9, 9]
    for k, counts in enumerate([[640 * 640], plain, plain, [0, 5, 640 * 640 - 5]]):
        rle = dict(size=[640, 640], counts=counts)
        data["annotations"][k]["segmentation"] = rle
    assert found(data) == {"empty_mask": [0]}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], "holds a list, not a JSON object"),
        (dict(images=[], annotations=[]), "no list 'categories'"),
        (dict(images={}, annotations=[], categories=[]), "no list 'images'"),
        (
            dict(images=[], annotations=[dict(segments_info=[])], categories=[]),
            "panoptic",
        ),
    ],
)
def test_what_is_no_coco_file(data, words):
    with pytest.raises(NotCocoError, match=words):
        check_coco(data)


def test_records_of_any_form_are_found_and_never_an_error():
    odd = [None, 3, "text", [], {}, dict(id=5), dict(id=[]), dict(bbox=3)]
    data = dict(images=list(odd), annotations=list(odd), categories=list(odd))
    report = check_coco(data)
    for key in data:
        assert report.findings(key) == set(range(len(odd)))
    empty = without_findings(data, report)
    assert empty == dict(images=[], annotations=[], categories=[])
    assert check_coco(empty).clean
