import math

import numpy as np
import pytest

from amp_hooks.data.boxes import NAMES, box_flaws, empty_masks, flaw_words, is_flat

SIZE = (100, 200)  # height, width
CASES = [
    ((0, 0, 10, 10), ""),
    ((0, 0, 200, 100), ""),
    ((190, 90, 300, 300), ""),  # in part outside, as augmentation leaves them
    ((-1000, -1000, 1000, 1000), ""),
    ((5, 5, 5, 10), "zero"),
    ((5, 5, 9, 5), "zero"),
    ((5, 5, 5, 5), "zero"),
    ((5, 5, 4, 10), "negative"),
    ((5, 5, 5, 4), "negative"),
    ((5, 5, 5.5, 10), "sub_pixel"),
    ((5, 5, 6, 10), ""),
    ((0, 0, math.nan, 10), "not_finite"),
    ((0, 0, math.inf, 10), "not_finite"),
    ((-math.inf, 0, math.inf, 10), "not_finite"),
    ((200, 0, 220, 10), "outside"),
    ((0, 100, 10, 120), "outside"),
    ((-20, 0, 0, 10), "outside"),
    ((0, -20, 10, 0), "outside"),
    ((150, 0, 160, 10), ""),  # width and height are not exchanged
    ((300, 0, 300, 10), "zero"),  # the flaw that divides by zero comes first
]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_is_wrong_with_a_box(dtype):
    boxes = np.array([box for box, _ in CASES], dtype)
    sizes = np.tile(np.array(SIZE, dtype), (len(boxes), 1))
    codes = box_flaws(boxes, sizes)
    assert [NAMES[c] for c in codes] == [flaw for _, flaw in CASES]


def test_without_the_size_of_the_image():
    boxes = np.array([[1e6, 0.0, 2e6, 10.0], [-5.0, 0.0, -1.0, 9.0]])
    assert box_flaws(boxes).tolist() == [0, 0]
    sizes = np.array([[math.nan, math.nan], [100, 100]])
    assert [NAMES[c] for c in box_flaws(boxes, sizes)][0] == ""


def test_the_smallest_size_is_the_users():
    boxes = np.array([[0, 0, 0.5, 9], [0, 0, 0.005, 9]])
    assert box_flaws(boxes, min_size=0.01).astype(bool).tolist() == [False, True]
    assert flaw_words("sub_pixel", 0.01) == "smaller than 0.01 pixel"


def test_sides_that_are_known_better_than_their_corners():
    """Of COCO's x, y, width, height: the corners' difference is rounded."""
    x, width = 0.1 + np.arange(1000) * 0.7, np.ones(1000)
    boxes = np.stack([x, x, x + width, x + width], 1)
    assert box_flaws(boxes).any()
    assert not box_flaws(boxes, sides=np.ones((1000, 2))).any()


def test_no_boxes():
    assert box_flaws(np.zeros((0, 4)), np.zeros((0, 2))).tolist() == []


def test_bitmaps():
    masks = np.zeros((5, 20, 30), np.uint8)
    masks[0, 12, 12] = 1  # in the middle row of its box
    masks[1, 19, 29] = 1  # somewhere else
    masks[3, 0, 0] = 1  # a box that sticks out
    masks[4, 12, 19] = 1
    box = [10.0, 10.0, 20.0, 14.0]
    boxes = np.array([box, box, box, [-50.0, -50.0, 5.0, 5.0], [18.5, 10, 19.0, 14]])
    assert empty_masks(masks, boxes).tolist() == [False, False, True, False, False]


SQUARE = [0, 0, 4, 0, 4, 4, 0, 4]


@pytest.mark.parametrize(
    ("polygon", "flat"),
    [
        (SQUARE, False),
        (SQUARE[::-1], False),
        ([0, 0, 1, 0, 0, 1], False),
        ([5, 5, 5, 5, 5, 5], True),
        ([0, 0, 3, 3, 6, 6, 9, 9], True),
        ([0.1, 0.3, 0.2, 0.6, 0.4, 1.2], True),  # a line, up to rounding
        ([0, 0, 4, 4], True),
        ([], True),
        ([0, 0, 4, 4, 4, 0, 0, 4], False),  # a bow tie, whose signed area is 0
        ([700, 700, 700.1, 700, 700, 700.1], False),
    ],
)
def test_polygons_without_area(polygon, flat):
    assert is_flat(polygon) is flat


def test_an_instance_needs_one_polygon_with_area():
    line = [0, 0, 3, 3, 6, 6]
    boxes = np.ones((4, 4))
    masks = [[SQUARE], [line, SQUARE], [line], []]
    assert empty_masks(masks, boxes).tolist() == [False, False, True, True]


def test_masks_of_unknown_form_count_as_full():
    boxes = np.ones((2, 4))
    for masks in ("ab", np.zeros((2, 3)), np.zeros((2, 0, 0)), [[SQUARE]]):
        assert not empty_masks(masks, boxes).any()
