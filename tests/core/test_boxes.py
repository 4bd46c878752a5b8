import math

import pytest

from amp_hooks.core.boxes import box_flaw


@pytest.mark.parametrize(
    ("box", "flaw"),
    [
        ((0, 0, 10, 10), ""),
        ((90, 90, 200, 200), ""),  # in part outside, as augmentation leaves them
        ((5, 5, 5, 10), "zero width or height"),
        ((5, 5, 4, 10), "negative width or height"),
        ((5, 5, 5.5, 10), "smaller than 1 pixel"),
        ((0, 0, math.nan, 10), "not finite"),
        ((0, 0, math.inf, 10), "not finite"),
        ((100, 0, 120, 10), "outside the image"),
        ((-20, 0, 0, 10), "outside the image"),
    ],
)
def test_what_is_wrong_with_a_box(box, flaw):
    assert box_flaw(box, (100, 100)) == flaw


def test_without_the_size_of_the_image():
    assert box_flaw((1e6, 0, 2e6, 10)) == ""
