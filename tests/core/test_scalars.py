import math

import torch

from amp_hooks.core.recorder import FlightRecorder
from amp_hooks.core.scalars import SCALARS, merge_worst, scalars_of
from amp_hooks.core.verdict import Verdict


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
    for name in ("skipped_total", "clamp_active", "rollbacks_total", "lr_factor"):
        record.put(name, 1.0)
    scalars = scalars_of(record)
    assert scalars == {
        "amp/scale_log2": -149.0,  # a scale of exactly 0 is drawn, not dropped
        "amp/nonfinite": 1.0,
        "amp/gradnorm/backbone": 2.0,
        "amp/cls_score_absmax": 131008.0,
        "amp/cls_score_absmax/rpn_head.rpn_cls": 131008.0,
        "amp/cls_score_absmax/roi_head.bbox_head.fc_cls": 1.0,
        "amp/cls_score_nan": 0.0,
        "amp/cls_score_inf": 0.0,
        "amp/headroom_bits": -1.0,
        "amp/headroom_bits/rpn_head.rpn_cls": -1.0,
        "amp/clamped_fraction": 0.25,
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
    }


def test_only_what_was_measured():
    assert scalars_of(record_of()) == {"amp/nonfinite": 0.0}


def test_worst_value_since_the_last_publication():
    old = {"amp/scale_log2": 3.0, "amp/gradnorm/x": 9.0, "amp/skipped_total": 4.0}
    new = {"amp/scale_log2": 8.0, "amp/gradnorm/x": 1.0, "amp/skipped_total": 5.0}
    new["amp/headroom_bits"] = 2.0
    assert merge_worst(old, new) == {
        "amp/scale_log2": 3.0,
        "amp/gradnorm/x": 9.0,
        "amp/skipped_total": 5.0,
        "amp/headroom_bits": 2.0,
    }
