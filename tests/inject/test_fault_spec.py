import math
import re

import pytest

from amp_hooks.inject.damage import Change
from amp_hooks.inject.fault_spec import read_fault
from amp_hooks.inject.fault_table import KINDS


def read(**entry):
    return read_fault("F: faults[0]", entry)


@pytest.mark.parametrize(
    ("value", "change"),
    [
        ("nan", Change(math.nan)),
        ("inf", Change(math.inf)),
        (float("-inf"), Change(-math.inf)),
        (3, Change(3.0)),
        ("x1000", Change(1000.0, multiply=True)),
        ("x1e-3", Change(1e-3, multiply=True)),
    ],
)
def test_values_of_tensors(value, change):
    fault = read(what="images", at=3, value=value)
    assert repr(fault.parsed) == repr(change)  # NaN equals nothing
    assert fault.count == (None if change.multiply else 1)
    assert read(what="images", at=3, value=value, count=2).count == 2
    assert read(what="images", at=3, value=value, count="all").count is None


@pytest.mark.parametrize(
    ("value", "seconds"), [("full", None), ("slow:2.5", 2.5), (2, 2.0)]
)
def test_values_of_disk(value, seconds):
    assert read(what="disk", at=0, value=value).parsed == seconds


def test_defaults():
    assert read(what="loss", at=1).where == ("*loss*",)
    assert read(what="loss", at=1).value == "nan"
    assert read(what="ema", at=1).where == ("*",)
    assert read(what="raise", at=1).where == ()
    assert read(what="raise", at=1).value == "matrix contains invalid numeric entries"
    assert read(what="boxes", at=1).value == "zero"
    assert read(what="disk", at=1).value == "full"


def test_when_it_is_due():
    fault = read(what="loss", at=[2, 7], iters=3)
    assert [i for i in range(12) if fault.is_due(i)] == [2, 3, 4, 7, 8, 9]
    assert [fault.overlaps(*r) for r in ((0, 2), (4, 5), (5, 7), (10, 99))] == [
        False,
        True,
        False,
        False,
    ]


def test_it_can_be_read_by_a_person():
    fault = read(what="gradient", at=[1, 2], iters=2, where="*cls*", value="x1000")
    assert str(fault) == (
        "gradient (x1000) in *cls* at iteration 1, 2, 2 iterations each"
    )


WRONG = [
    (dict(what="loss", at=1, vaule=3), "no argument 'vaule'.*mean 'value'"),
    (dict(at=1), "what=None.*" + ", ".join(KINDS)),
    (dict(what="los", at=1), "what='los'.*forward, gradient"),
    (dict(what=["loss"], at=1), r"what=\['loss'\]"),
    (dict(what="loss"), "at=None must be an iteration.*at=100"),
    (dict(what="loss", at=-1), "at=-1 must be"),
    (dict(what="loss", at=1.5), "at=1.5 must be"),
    (dict(what="loss", at=True), "at=True must be"),
    (dict(what="loss", at=[3, "4"]), r"at=\[3, '4'\] must be"),
    (dict(what="loss", at=[]), r"at=\[\] names no iteration; give"),
    (dict(what="loss", at=1, iters=0), "iters .* at least 1, got 0"),
    (dict(what="loss", at=1, iters="2"), "iters .* at least 1, got '2'"),
    (dict(what="loss", at=1, rank=-1), "rank .* at least 0, got -1"),
    (dict(what="loss", at=1, rank="0"), "rank .* got '0'"),
    (dict(what="loss", at=1, count=2), "'loss' fault has no `count`, got 2; leave"),
    (dict(what="images", at=1, count=0), "count=0 must be .* 'all'"),
    (dict(what="images", at=1, count="many"), "count='many' must be"),
    (dict(what="images", at=1, where="*"), "'images' fault has no `where`"),
    (dict(what="disk", at=1, count=1), "has no `count`"),
    *(
        (dict(what=what, at=1), f"'{what}' fault needs `where`.*named_{names}s")
        for what, names in (
            ("forward", "module"),
            ("gradient", "parameter"),
            ("parameter", "parameter"),
            ("buffer", "buffer"),
            ("optimizer", "parameter"),
        )
    ),
    (dict(what="gradient", at=1, where=[]), r"where=\[\] must be a parameter name"),
    (dict(what="forward", at=1, where=3), "where=3 must be a module name pattern"),
    *(
        (
            dict(what="loss", at=1, value=value),
            rf"value={re.escape(repr(value))} means nothing.*x1000",
        )
        for value in ("big", "x", "xnan", "10", True, [1])
    ),
    (dict(what="boxes", at=1, value="small"), "value='small'.*'subpixel'"),
    (dict(what="raise", at=1, value=3), "value=3.*message"),
    (dict(what="raise", at=1, value=""), "value=''.*message"),
    *(
        (dict(what="disk", at=1, value=value), "value=.*'full', 'slow:2.5'")
        for value in ("slow", "slow:", "slow:-1", 0, -1, True, math.inf, [1])
    ),
]


@pytest.mark.parametrize(("entry", "words"), WRONG)
def test_errors_name_argument_value_and_remedy(entry, words):
    with pytest.raises((TypeError, ValueError), match=rf"^F: faults\[0\]: .*{words}"):
        read(**entry)
