"""A sample of scripts/sweep_detectors.py: real detectors, every way to be found."""

from pathlib import Path

import pytest

from tests import helpers

SCRIPTS = helpers.ROOT / "scripts"


@pytest.fixture
def sweep(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import sweep_detectors

    return sweep_detectors


@pytest.mark.filterwarnings("ignore:torch.meshgrid")  # of mmdet, told by torch
@pytest.mark.parametrize(
    "family",
    [
        "fast_rcnn",  # RoI head
        "free_anchor",  # calls no loss module
        "tood",  # scores are a product of two branches
        "centernet",  # heatmap
        "yolox",  # classes and objectness, a layer for each level
        "rtmdet_ins",  # instance masks beside the classes
        "detr",  # one layer for all decoder stages
        "solov2",  # head without boxes
    ],
)
def test_exactly_the_classifiers_are_found_read_and_clamped(sweep, family):
    result = sweep.check(family)
    assert (result.status, result.reason) == ("ok", "")
    assert result.found
    assert all(value > 0 for value in result.absmax.values())


def test_every_family_says_what_is_expected_or_why_it_cannot_run(sweep):
    for name, family in sweep.FAMILIES.items():
        assert bool(family.layers) != bool(family.cannot), name
        assert Path(sweep.CONFIGS, f"{family.config}.py").exists(), name


def test_a_wrong_expectation_is_seen(sweep, monkeypatch):
    family = sweep.Family("retinanet/retinanet_r18_fpn_1x_coco", ("bbox_head.*_reg",))
    monkeypatch.setitem(sweep.FAMILIES, "wrong", family)
    result = sweep.check("wrong")
    assert result.status == "failed"
    assert "bbox_head.retina_cls" in result.reason
    assert "bbox_head.retina_reg" in result.reason


def test_a_family_that_breaks_does_not_stop_the_others(sweep, monkeypatch):
    monkeypatch.setitem(
        sweep.FAMILIES, "broken", sweep.Family("no/such_config", ("*",))
    )
    result = sweep.check("broken")
    assert result.status == "failed"
    assert "such_config" in result.reason


def test_the_program_prints_a_table_and_counts(sweep, monkeypatch, capsys):
    argv = ["sweep_detectors.py", "--families", "yolox", "glip"]
    monkeypatch.setattr("sys.argv", argv)
    with pytest.raises(SystemExit) as end:
        sweep.main()
    assert not end.value.code
    titles, _, yolox, glip, _, count = capsys.readouterr().out.splitlines()
    assert titles.count("|") == yolox.count("|") == glip.count("|")
    assert "bbox_head.multi_level_conv_cls.0-2" in yolox
    assert "6 of 6" in yolox
    assert "BERT" in glip
    assert count == "1 ok, 1 cannot run"


def test_layers_are_shown_short(sweep):
    layers = ["a.0.b", "a.1.b", "c", "a.2.b", "d.3"]
    assert sweep.short(layers) == "a.0-2.b, c, d.3"
