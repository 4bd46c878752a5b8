"""The table of README.md is what the doctor compares with."""

import re

import pytest

from amp_hooks.doctor.tested import TESTED, Versions, minor, outside, together
from tests import helpers


def test_it_is_the_table_of_the_readme():
    rows = re.findall(
        r"^\| ([\d.]+) \| ([\d.]+) \|(.*)\|$",
        (helpers.ROOT / "README.md").read_text(),
        re.MULTILINE,
    )
    shown = [
        Versions(torch, python, *(c.split()[-1] for c in others.split("|")))
        for torch, python, others in rows
    ]
    assert tuple(shown) == TESTED


@pytest.mark.parametrize(
    ("name", "version", "how"),
    [
        ("torch", "2.13.1+cu130", ""),
        ("torch", "2.14.0", "newer than 2.13.0, the newest tested"),
        ("mmengine", "0.9.0", ""),  # after 0.8, though "0.10" < "0.8" as text
        ("mmcv", "2.0.0rc4", ""),
        ("mmdet", "2.28.2", "older than 3.0.0, the oldest tested"),
    ],
)
def test_older_and_newer(name, version, how):
    assert outside(name, version) == how


def test_what_was_tested_together():
    each = TESTED[1]._asdict()
    assert together(each)
    assert together(dict(each, torch="2.1.0+cu118"))
    del each["mmdet"]
    assert together(each)
    assert not together(dict(each, mmengine="0.10.7"))
    assert minor("2.1.0a0+git12") == (2, 1)
