import math
import posixpath
import re

import pytest
import torch

from amp_hooks.engine.recorder import FlightRecorder
from amp_hooks.engine.verdict import Verdict
from amp_hooks.panel.scalars import (
    SCALARS,
    as_files,
    legal_name,
    merge_worst,
    scalars_of,
)

FP16_LOG2 = math.log2(65504)


def record_of(**quantities):
    recorder = FlightRecorder()
    for quantity, values in quantities.items():
        for name, value in values.items():
            recorder.note(quantity, torch.tensor(float(value)), name)
    return recorder.close(0)


def test_names_of_the_contract_and_finite_values_only():
    record = record_of(
        scale={"": 0.0},
        gradnorm={"": math.inf, "backbone": 2.0},
        logit_absmax={"rpn_head.rpn_cls": 65504 * 2, "roi_head.bbox_head.fc_cls": 1},
        clamped={"rpn_head.rpn_cls": 0.25},
    )
    record.verdict = Verdict.FORWARD_NONFINITE
    record.put("logit_limit", 65504.0, "rpn_head.rpn_cls")
    record.put("clamp_limit", 64.0)
    for name in (
        "nonfinite_total",
        "skipped_total",
        "clamp_active",
        "rollbacks_total",
        "lr_factor",
    ):
        record.put(name, 1.0)
    scalars = scalars_of(record)
    assert scalars == {
        "amp/scale_log2": -149.0,  # a scale of exactly 0 is drawn, not dropped
        "amp/nonfinite": 1.0,
        "amp/gradnorm/backbone": 2.0,
        "amp/cls_score_absmax": 131008.0,
        "amp/cls_score_absmax/rpn_head.rpn_cls": 131008.0,
        "amp/cls_score_absmax/roi_head.bbox_head.fc_cls": 1.0,
        "amp/cls_score_log2": FP16_LOG2 + 1,
        "amp/cls_score_log2/rpn_head.rpn_cls": FP16_LOG2 + 1,
        "amp/cls_score_log2/roi_head.bbox_head.fc_cls": 0.0,
        "amp/fp16_limit_log2": FP16_LOG2,
        "amp/clamp_limit_log2": 6.0,
        "amp/cls_score_nan": 0.0,
        "amp/cls_score_inf": 0.0,
        "amp/headroom_bits": -1.0,
        "amp/headroom_bits/rpn_head.rpn_cls": -1.0,
        "amp/clamped_fraction": 0.25,
        "amp/nonfinite_total": 1.0,
        "amp/skipped_total": 1.0,
        "amp/clamp_active": 1.0,
        "amp/rollbacks_total": 1.0,
        "amp/lr_factor": 1.0,
    }
    stems = {name.split("/<")[0] for name in SCALARS}
    assert {"/".join(name.split("/")[:2]) for name in scalars} <= stems


def test_several_optimizers_each_under_its_name():
    record = record_of(
        scale={"body": 1024.0, "head": 2.0},
        skipped_total={"body": 1, "head": 4},
        skipped_streak={"body": 0, "head": 3},
        clip_max_norm={"body": 35.0, "head": 1.0},
    )
    assert scalars_of(record) == {
        "amp/nonfinite": 0.0,
        "amp/scale_log2": 1.0,
        "amp/scale_log2/body": 10.0,
        "amp/scale_log2/head": 1.0,
        "amp/skipped_total": 5.0,
        "amp/skipped_total/body": 1.0,
        "amp/skipped_total/head": 4.0,
        "amp/skipped_streak": 3.0,
        "amp/clip_max_norm": 1.0,
        "amp/clip_max_norm/body": 35.0,
        "amp/clip_max_norm/head": 1.0,
    }


def test_only_what_was_measured():
    assert scalars_of(record_of()) == {"amp/nonfinite": 0.0}


def test_worst_value_since_the_last_publication():
    old = {"amp/scale_log2": 3.0, "amp/gradnorm/x": 9.0, "amp/skipped_total": 4.0}
    new = {"amp/scale_log2": 8.0, "amp/gradnorm/x": 1.0, "amp/skipped_total": 5.0}
    new["amp/headroom_bits"] = 2.0
    old["amp/gradnorm/a/b"] = new["amp/gradnorm/a/b"] = 1.0  # a group's own slash
    merge_worst(old, new)
    assert old == {
        "amp/scale_log2": 3.0,
        "amp/gradnorm/x": 9.0,
        "amp/skipped_total": 5.0,
        "amp/headroom_bits": 2.0,
        "amp/gradnorm/a/b": 1.0,
    }


def test_names_that_are_legal_stay():
    for name in (*SCALARS, "amp/gradnorm/a b_c-d.e/f", "amp/x/roi_head.fc_cls.0"):
        if "<" not in name:
            assert legal_name(name) == name


def test_illegal_names_become_legal_and_stay_different():
    groups = ["head*cls", "head?cls", "head_cls", "ü", "%", "", ".", "..", "/", "a//b"]
    groups += ["../../x", "a/", "x" * 300, "x" * 301, "a\nb", "head|cls", "(a)"]
    names = [legal_name(f"amp/gradnorm/{group}") for group in groups]
    assert len(set(names)) == len(groups)
    for name in names:
        # What MLflow checks.
        assert re.fullmatch(r"[/\w.\- ]{1,250}", name)
        assert posixpath.normpath(name) == name
        assert not name.startswith(("/", "."))


def test_no_name_is_a_folder_of_others_where_that_matters():
    names = ["loss", "amp/x", "amp/x/a", "amp/x/a/b", "amp/x/roi_head.fc_cls"]
    assert list(as_files(dict.fromkeys(names, 0.0))) == [
        "loss",
        "amp/x",
        "amp/x.a",
        "amp/x.a.b",
        "amp/x.roi_head.fc_cls",
    ]


def test_logits_that_are_all_nan_leave_no_point_on_a_log_axis():
    record = record_of(logit_absmax={"fc_cls": 0.0}, logit_nan={"fc_cls": 100.0})
    published = scalars_of(record)
    assert published["amp/cls_score_absmax"] == 0.0
    assert not [name for name in published if name.startswith("amp/cls_score_log2")]


@pytest.mark.parametrize(
    ("low", "there"), [(0.25, {"now": 1.0, "low": -2.0, "high": 3.0}), (0.0, {})]
)
def test_a_band_of_the_loss_on_a_log_axis_is_whole_or_not_there(low, there):
    record = record_of(loss_now={"": 2.0}, loss_low={"": low}, loss_high={"": 8.0})
    published = scalars_of(record)
    assert published["amp/loss_low"] == low
    logs = {name: v for name, v in published.items() if name.endswith("_log2")}
    assert logs == {f"amp/loss_{edge}_log2": v for edge, v in there.items()}
