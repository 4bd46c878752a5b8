import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

from amp_hooks.engine.runtime import Runtime
from amp_hooks.hooks import StabilityPanelHook
from amp_hooks.monitor.logit_watch import LogitWatch
from amp_hooks.panel.scalars import SCALARS
from amp_hooks.panel.tensorboard_panel import CARDS, LAYOUT, card_text
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


def unit_of(tag):
    """Of a scalar of ours, or of its kind; MMEngine's own have none."""
    stem = "/".join(tag.split("/")[:2])
    return SCALARS[stem].unit if stem in SCALARS else tag


def test_one_layout_with_tags_that_exist(build):
    """Every pattern finds a curve where all is attached; no axis has two units."""
    health = dict(type="amp_hooks.HealthHook")
    fallback = dict(type="amp_hooks.PrecisionFallbackHook")
    runner = build(
        "faster_rcnn",
        iters=9,  # the healthy range is known after a few losses
        hooks=[*helpers.SUITE[:7], health, fallback, PANEL],
        options={"default_hooks.logger.interval": 1},
    )
    runner.train()
    accumulator = events_of(runner)
    (event,) = accumulator.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    assert [category.title for category in layout.category] == list(LAYOUT)
    charts = [chart for category in layout.category for chart in category.chart]
    scalars = accumulator.Tags()["scalars"]
    first = []
    for chart in charts:
        shown = set()
        for pattern in chart.multiline.tag:
            found = {tag for tag in scalars if re.match(pattern, tag)}
            assert found, pattern
            shown |= found
        for edges in chart.margin.series:
            shown |= {edges.value, edges.lower, edges.upper}
        assert shown <= set(scalars)
        assert len({unit_of(tag) for tag in shown}) == 1, (chart.title, shown)
        first.append(min(shown))
    assert first[:4] == [
        "amp/loss_high_log2",
        "amp/scale_log2",
        "amp/clamp_limit_log2",
        "amp/lr_factor",
    ]
    now, low, high = (
        series(accumulator, f"amp/loss_{edge}_log2") for edge in ("now", "low", "high")
    )
    assert list(now) == list(low) == list(high)
    assert now[9] == pytest.approx(math.log2(series(accumulator, "amp/loss_now")[9]))
    clip = runner.optim_wrapper.clip_grad_kwargs["max_norm"]
    assert set(series(accumulator, "amp/clip_max_norm").values()) == {clip}
    limit = series(accumulator, "amp/clamp_limit_log2")
    assert limit[3] == pytest.approx(math.log2(100.0))
    assert series(accumulator, "amp/fp16_limit_log2")[3] == pytest.approx(15.9993, 1e-5)


@pytest.mark.parametrize(
    "clip", [None, dict(type="value", clip_value=1.0), dict(max_norm=5, norm_type=1)]
)
def test_no_clip_line_where_no_l2_norm_is_clipped(build, clip):
    runner = build(
        "retinanet",
        iters=3,
        hooks=[helpers.SUITE[2], PANEL],
        options={"optim_wrapper.clip_grad": None},
    )
    runner.cfg.optim_wrapper.clip_grad = clip
    runner.optim_wrapper = dict(runner.cfg.optim_wrapper)
    runner.train()
    tags = events_of(runner).Tags()["scalars"]
    assert "amp/gradnorm" in tags
    assert "amp/clip_max_norm" not in tags


@pytest.mark.parametrize("loop", [dict(iters=8), dict(epochs=1)], ids=str)
def test_events_are_cards_of_text(build, loop):
    """At once: they are in the file before the run ends."""
    read = []

    class ReadNow(Hook):
        priority = "LOWEST"

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            if runner.iter == 5:
                read.append(events_of(runner))

    rollback = dict(helpers.SUITE[6], patience=1)
    hooks = [helpers.infinite_images(5), *helpers.SUITE[:5], rollback, PANEL]
    runner = build("faster_rcnn", **loop, hooks=hooks)
    runner.register_hook(ReadNow())
    runner.train()
    for accumulator in (read[0], events_of(runner)):
        (card,) = accumulator.Tensors("amp_hooks/rollback/text_summary")
        assert card.step == 6
        (text,) = card.tensor_proto.string_val
        (line,) = helpers.ledger(runner, "rollback")
        assert text.decode() == card_text(line)
        assert "the forward pass was not finite" in text.decode()
        tags = accumulator.Tags()["tensors"]
        shown = {t.split("/")[1] for t in tags if t.startswith("amp_hooks/")}
        ledger = {line["event"] for line in helpers.ledger(runner)}
        assert shown <= CARDS & ledger
    assert "clamp_on" in shown


def test_text_is_shown_letter_by_letter():
    """Markdown and HTML of module paths and exceptions do nothing."""
    import markdown

    error = "ValueError: <b>*x*</b> at a.__init__\n# [1](http://x) `y` 1. _z_ & w"
    line = dict(iter=7, event="abort", verdict="RAISED", error=error)
    shown = markdown.markdown(card_text(line))
    text = re.sub(r"</?(p|strong)>", "", shown)
    assert not re.search(r"<(?!/?(p|strong)>)", shown)
    plain = "&lt;b&gt;*x*&lt;/b&gt; at a.__init__ # [1](http://x) `y` 1. _z_ &amp; w"
    assert plain in text
    assert text.startswith("iteration 7 Training ended")


def test_cards_are_bounded(build):
    runner = build("retinanet", iters=2, hooks=[*helpers.SUITE[:3], PANEL])

    class Flood(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            for _ in range(300):
                line = dict(lr_factor=0.1)
                runtime = Runtime.of(runner)
                runtime.emit(
                    "recover", runner.iter, runtime.record(runner, {}).verdict, **line
                )

    runner.register_hook(Flood())
    runner.train()
    folder = Path(runner.log_dir) / "vis_data"
    accumulator = EventAccumulator(str(folder), size_guidance=dict(tensors=0))
    accumulator.Reload()
    assert len(accumulator.Tensors("amp_hooks/recover/text_summary")) == 200


def histograms(runner):
    folder = Path(runner.log_dir) / "vis_data"
    accumulator = EventAccumulator(str(folder), size_guidance=dict(histograms=0))
    accumulator.Reload()
    return {
        tag: {e.step: e.histogram_value for e in accumulator.Histograms(tag)}
        for tag in accumulator.Tags()["histograms"]
    }


@pytest.mark.parametrize(
    ("loop", "accumulate"), [(dict(iters=12), 3), (dict(epochs=1), 1)], ids=str
)
def test_histograms_at_their_interval(build, loop, accumulate):
    """Of logits and gradients; a step may come later than the logits."""
    hooks = [*helpers.SUITE[:3], dict(PANEL, histogram_interval=5)]
    runner = build(
        "faster_rcnn",
        **loop,
        accumulate=accumulate,
        hooks=hooks,
        options={"optim_wrapper.loss_scale": 128.0},
    )
    runner.train()
    found = histograms(runner)
    layers = ("roi_head.bbox_head.fc_cls", "rpn_head.rpn_cls")
    norms = found.pop("amp/gradnorm_log2_by_parameter")
    assert set(found) == {f"amp/cls_score/{layer}" for layer in layers}
    for drawn in found.values():
        assert list(drawn) == [5, 10]
    assert list(norms) == ([5, 10] if accumulate == 1 else [6, 12])
    # Largest logit and largest gradient are those of the records.
    record = helpers.records(runner)[4]
    for layer in layers:
        drawn = found[f"amp/cls_score/{layer}"][5]
        absmax = max(-drawn.min, drawn.max)
        assert absmax == pytest.approx(record.get("logit_absmax", layer), rel=1e-6)
    step = min(norms)
    total = helpers.records(runner)[step - 1].get("gradnorm")
    assert 2 ** norms[step].max <= total * (1 + 1e-6)
    trained = sum(p.requires_grad for p in runner.model.parameters())
    assert 0.5 * trained < norms[step].num <= trained


def test_histograms_cost_nothing_in_other_iterations(build):
    hooks = [*helpers.SUITE[:2], dict(PANEL, histogram_interval=4)]
    runner = build("retinanet", iters=6, hooks=hooks)
    listening = {}

    class Look(Hook):
        priority = "LOWEST"

        def before_train_iter(self, runner, batch_idx, data_batch=None):
            runtime = Runtime.of(runner)
            listening[runner.iter] = len(runtime.watch_forward(LogitWatch).listeners)
            listening[runner.iter] += len(runtime.tap.listeners)

    runner.register_hook(Look())
    runner.train()
    assert listening == {0: 0, 1: 0, 2: 0, 3: 2, 4: 0, 5: 0}


def test_histograms_of_logits_that_are_not_finite(build):
    """As in a collapse: what is finite is drawn, and the run goes on."""
    hooks = [helpers.infinite_images(3), *helpers.SUITE[:3]]
    hooks += [dict(PANEL, histogram_interval=4)]
    runner = build("faster_rcnn", iters=4, hooks=hooks)
    runner.train()
    assert runner.iter == 4
    for drawn in histograms(runner).values():
        assert all(np.isfinite([h.min, h.max]).all() for h in drawn.values())


def test_many_logits_are_thinned():
    from amp_hooks.panel.histograms import thinned

    assert len(thinned(torch.zeros(7, 3))) == 21
    assert len(thinned(torch.zeros(0))) == 0
    for n in (99_999, 100_000, 100_001, 1_234_567):
        assert 50_000 <= len(thinned(torch.zeros(n))) <= 100_000


@pytest.mark.parametrize(("value", "error"), [(0, ValueError), ("5", TypeError)])
def test_a_wrong_histogram_interval(value, error):
    with pytest.raises(error, match="histogram_interval"):
        StabilityPanelHook(histogram_interval=value)


def test_local_backend_gets_the_same_in_strict_json(build):
    runner = build("retinanet", iters=6, hooks=[*helpers.SUITE[:3], PANEL])
    runner.train()
    path = Path(runner.log_dir) / "vis_data" / "scalars.json"
    lines = [json.loads(x) for x in path.read_text().splitlines()]
    ours = [x for x in lines if "amp/gradnorm" in x]
    assert {3, 6} <= {x["step"] for x in ours}
    assert all("amp/scale_log2" in x for x in ours)


def test_a_backend_that_fails_costs_no_run(build):
    hooks = [*helpers.SUITE[:3], PANEL]
    options = {"log_level": "WARNING"}
    runner = build("retinanet", iters=4, hooks=hooks, options=options)
    backend = runner.visualizer._vis_backends["LocalVisBackend"]
    add_scalars = backend.add_scalars

    def broken(scalar_dict, *args, **kwargs):
        if any(name.startswith("amp/") for name in scalar_dict):
            raise OSError(28, "No space left on device")
        return add_scalars(scalar_dict, *args, **kwargs)

    backend.add_scalars = broken
    runner.train()
    assert runner.iter == 4
    # Nor the points of the backends after it.
    assert 3 in series(events_of(runner), "amp/gradnorm")
    assert helpers.log(runner).count("could not publish to LocalVisBackend") == 1


def test_a_tensorboard_that_fails_costs_no_run(build):
    hooks = [helpers.infinite_images(2), *helpers.SUITE[:3]]
    hooks += [helpers.SUITE[6], dict(PANEL, histogram_interval=1)]
    options = {"log_level": "WARNING"}
    runner = build("faster_rcnn", iters=4, hooks=hooks, options=options)

    def broken(*args, **kwargs):
        raise OSError(28, "No space left on device")

    writer = runner.visualizer._vis_backends["TensorboardVisBackend"].experiment
    for name in ("add_custom_scalars", "add_text", "add_histogram", "flush"):
        setattr(writer, name, broken)
    runner.train()
    assert runner.iter == 4
    assert helpers.log(runner).count("could not write to TensorBoard") == 1


@helpers.NEEDS_TORCH_2_1
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


def test_without_tensorboard_it_says_how_to_get_panels(build):
    runner = build(
        "retinanet",
        iters=1,
        hooks=[PANEL],
        options={
            "visualizer.vis_backends": [dict(type="LocalVisBackend")],
            "log_level": "INFO",
        },
    )
    runner.train()
    assert helpers.log(runner).count("for panels add") == 1
