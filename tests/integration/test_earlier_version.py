"""What version 0.1.0 left, before its modules were moved, is resumed and reported.

``tests/data/run_0.1.0`` is the work_dir of a small Faster R-CNN in rehearsed FP16 that
this version trained, with infinite images in iterations 5 to 7, and that was ended in
iteration 12 of 20; the checkpoint of iteration 12 was not written. ``report.txt`` is
what the report of today prints of it, and ``resumed.json`` what that version made of it
with ``resume``.
"""

import json
import math
import shutil

import pytest

from tests import helpers, processes

RUN = helpers.ROOT / "tests/data/run_0.1.0"
NARROW = {
    "model.backbone.base_channels": 4,
    "model.neck.in_channels": [4, 8, 16, 32],
    "model.neck.out_channels": 16,
    "model.rpn_head.in_channels": 16,
    "model.rpn_head.feat_channels": 16,
    "model.roi_head.bbox_roi_extractor.out_channels": 16,
    "model.roi_head.bbox_head.in_channels": 16,
    "model.roi_head.bbox_head.fc_out_channels": 16,
}


def test_it_is_reported_to_the_letter():
    done = processes.python(
        "-m",
        "amp_hooks.report",
        RUN.name,
        cwd=RUN.parent,
        status=1,
        PYTHONIOENCODING="utf-8",
        COLUMNS="",
    )
    assert done.stdout == (RUN / "report.txt").read_text(encoding="utf-8")


def test_it_is_resumed_as_by_itself(build, tmp_path):
    shutil.copytree(RUN, tmp_path / "w")
    images = helpers.infinite_images(at=5, iters=3)
    runner = build(
        "faster_rcnn",
        iters=20,
        work_dir=tmp_path / "w",
        hooks=[*helpers.SUITE, images],
        options=dict(NARROW, resume=True),
    )
    runner.train()
    then = json.loads((RUN / "resumed.json").read_text())
    events = [[line["iter"], line["event"]] for line in helpers.ledger(runner)]
    assert events == then["events"]
    # Another processor may round the last bits another way: 1.3% after 20 iterations.
    losses = [float(loss) for loss in then["losses"]]
    assert sum(map(math.isnan, losses)) == 3
    assert helpers.losses(runner) == pytest.approx(losses, rel=5e-2, nan_ok=True)
    assert runner.optim_wrapper.get_lr()["lr"] == [pytest.approx(then["lr"])]
    assert runner.optim_wrapper.loss_scaler.get_scale() == then["scale"]
    for name, state in then["states"].items():
        now = json.loads(json.dumps(helpers.hook_of(runner, name).state()))
        if name == "RollbackHook":
            now.pop("by_design")  # all three of later versions
            assert now["lr"].pop("held")["factor"] == 1.0
            assert now["lr"].pop("before") == pytest.approx(0.1)
            (rate,), (before,) = (
                now["lr"]["trust"]["last"],
                state["lr"]["trust"]["last"],
            )
            assert rate == pytest.approx(before)
            now["lr"]["trust"]["last"] = state["lr"]["trust"]["last"]
        if name == "HeadClampHook":
            assert now.pop("first").keys() == set(now["layers"])  # of later versions
        assert now == state, name
