import json
import math
import re
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

from amp_hooks.core.scalars import SCALARS
from tests import helpers

PANEL = dict(type="amp_hooks.StabilityPanelHook", interval=3)


def events_of(runner):
    folder = Path(runner.log_dir) / "vis_data"
    files = list(folder.rglob("events.out.tfevents*"))
    assert len(files) == 1, "one writer, MMEngine's own"
    accumulator = EventAccumulator(str(files[0]), size_guidance=dict(scalars=0))
    accumulator.Reload()
    return accumulator


def series(accumulator, tag):
    return {e.step: e.value for e in accumulator.Scalars(tag)}


@pytest.mark.parametrize("loop", [dict(iters=12), dict(epochs=1)])
def test_scalars_in_the_event_file(build, loop):
    fault = helpers.infinite_images(7)
    rollback = dict(helpers.SUITE[6], warmup_iters=4)
    hooks = [fault, *helpers.SUITE[:3], rollback, PANEL]
    runner = build("faster_rcnn", **loop, hooks=hooks)
    runner.train()
    accumulator = events_of(runner)
    tags = {t for t in accumulator.Tags()["scalars"] if t.startswith("amp/")}
    stems = {name.split("/<")[0] for name in SCALARS}
    assert {"/".join(t.split("/")[:2]) for t in tags} <= stems
    assert {
        "amp/scale_log2",
        "amp/skipped_total",
        "amp/nonfinite",
        "amp/gradnorm",
        "amp/gradnorm/backbone",
        "amp/cls_score_absmax",
        "amp/cls_score_absmax/roi_head.bbox_head.fc_cls",
        "amp/headroom_bits",
        "amp/rollbacks_total",
        "amp/lr_factor",
    } <= tags
    for tag in tags:
        points = series(accumulator, tag)
        assert all(math.isfinite(v) for v in points.values()), tag
        assert list(points) == sorted(points)
    # step = iter + 1, every 3 iterations; the fault of iteration 7 at once.
    nonfinite = series(accumulator, "amp/nonfinite")
    assert {3, 6, 8, 9, 12} <= set(nonfinite)
    assert nonfinite[8] == 1.0
    assert series(accumulator, "amp/rollbacks_total")[8] == 1.0
    # In iteration 8 the re-warm-up begins, in iteration 11 it has three steps of four.
    lr_factor = series(accumulator, "amp/lr_factor")
    assert lr_factor[12] == pytest.approx(0.1 * (0.001 + 0.999 * 3 / 4))


def test_the_worst_value_between_two_publications_is_not_lost(build):
    """A spike of the logits in one iteration, published two iterations later."""
    name = "roi_head.bbox_head.fc_cls.weight"
    hooks = [helpers.SUITE[1], PANEL]
    options = {
        "optim_wrapper.optimizer.lr": 1e-9,
        "optim_wrapper.loss_scale": 1.0,
    }
    runner = build("faster_rcnn", iters=9, hooks=hooks, ema=False, options=options)

    class Spike(Hook):
        """Not an injected fault, which would be an event and published at once."""

        def before_train_iter(self, runner, batch_idx, data_batch=None):
            factor = {3: 100.0, 4: 0.01}.get(runner.iter, 1.0)
            with torch.no_grad():
                runner.model.get_parameter(name).mul_(factor)

    runner.register_hook(Spike())
    runner.train()
    points = series(events_of(runner), f"amp/cls_score_absmax/{name[:-7]}")
    assert points[6] > 10 * points[3]
    assert points[6] > 10 * points[9]


def test_one_layout_with_tags_that_exist(build):
    runner = build(
        "faster_rcnn",
        iters=3,
        hooks=[*helpers.SUITE[:7], PANEL],
        options={"default_hooks.logger.interval": 1},
    )
    runner.train()
    accumulator = events_of(runner)
    (event,) = accumulator.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    (category,) = layout.category
    assert category.title == "amp_hooks stability"
    titles = [chart.title for chart in category.chart]
    assert len(titles) == len(set(titles)) == 8
    scalars = accumulator.Tags()["scalars"]
    for chart in category.chart:
        for pattern in chart.multiline.tag:
            assert any(re.match(pattern, tag) for tag in scalars), pattern


def test_local_backend_gets_the_same_in_strict_json(build):
    runner = build("retinanet", iters=6, hooks=[*helpers.SUITE[:3], PANEL])
    runner.train()
    path = Path(runner.log_dir) / "vis_data" / "scalars.json"
    lines = [json.loads(x) for x in path.read_text().splitlines()]
    ours = [x for x in lines if "amp/gradnorm" in x]
    assert {3, 6} <= {x["step"] for x in ours}
    assert all("amp/scale_log2" in x for x in ours)


def test_a_backend_that_fails_costs_no_run(build):
    runner = build("retinanet", iters=4, hooks=[*helpers.SUITE[:3], PANEL])
    backend = runner.visualizer._vis_backends["LocalVisBackend"]
    add_scalars = backend.add_scalars

    def broken(scalar_dict, *args, **kwargs):
        if any(name.startswith("amp/") for name in scalar_dict):
            raise OSError(28, "No space left on device")
        return add_scalars(scalar_dict, *args, **kwargs)

    backend.add_scalars = broken
    runner.train()
    assert runner.iter == 4


def test_without_a_backend_it_says_what_to_add(build, tmp_path):
    runner = build(
        "retinanet",
        iters=1,
        hooks=[PANEL],
        options={
            "visualizer.vis_backends": [],
            "vis_backends": [],
            "log_level": "WARNING",
        },
    )
    runner.train()
    (log,) = Path(runner.work_dir).glob("*/*.log")
    assert "TensorboardVisBackend" in log.read_text()
