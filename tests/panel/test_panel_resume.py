"""A run that was killed and resumed is one run in TensorBoard, without a zig-zag."""

import json
import re
import subprocess
import sys
import time
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import torch
from mmengine.hooks import Hook
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from amp_hooks.panel.tensorboard_panel import LAYOUT
from tests import helpers, processes

LAYER = "roi_head.bbox_head.fc_cls"
CHARTS = {t: chart for charts in LAYOUT.values() for t, chart in charts.items()}


class SpikeAndKill(Hook):
    """Large logits in iteration 8, no event; the process ends after iteration 12."""

    priority = "LOWEST"

    def __init__(self, kill):
        self.kill = kill

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        factor = {8: 100.0, 9: 0.01}.get(runner.iter, 1.0)
        with torch.no_grad():
            runner.model.get_parameter(f"{LAYER}.weight").mul_(factor)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter == 12 and self.kill:
            # What the writer has been given; a killed process loses the last seconds.
            runner.visualizer._vis_backends["TensorboardVisBackend"].experiment.flush()
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def shared(digits, tmp_path_factory):
    """The folder of two starts: 0 to 12, then from the checkpoint of 10 to 16."""
    folder = tmp_path_factory.mktemp("resumed")
    rollback = dict(interval=10**6, probation=0, patience=1, warmup_iters=0)
    hooks = [
        helpers.infinite_images(2),
        helpers.SUITE[0],
        dict(type="amp_hooks.ClsScoreMonitorHook", warn_ahead=0),
        helpers.SUITE[2],
        helpers.SUITE[4],
        dict(type="amp_hooks.RollbackHook", **rollback),
        dict(type="amp_hooks.StabilityPanelHook", interval=4),
    ]
    backend = dict(type="TensorboardVisBackend", save_dir=str(folder / "board"))
    for resume in (False, True):
        runner = helpers.build_runner(
            "faster_rcnn",
            digits,
            folder / "work",
            iters=16,
            hooks=hooks,
            ema=False,
            validate=True,
            options={
                "resume": resume,
                "visualizer.vis_backends": [backend],
                "optim_wrapper.optimizer.lr": 1e-9,
                "optim_wrapper.loss_scale": 1.0,
                "default_hooks.logger.interval": 1,
                "default_hooks.logger.log_metric_by_epoch": False,
                "default_hooks.checkpoint.interval": 5,
                "train_cfg.val_interval": 6,
            },
        )
        runner.register_hook(SpikeAndKill(kill=not resume))
        if resume:
            runner.train()
        else:
            with pytest.raises(KeyboardInterrupt):
                runner.train()
        runner.visualizer.close()
    assert len(list((folder / "board").iterdir())) == 2, "two starts, two files"
    return folder / "board"


@pytest.fixture(scope="module")
def points(shared):
    accumulator = EventAccumulator(
        str(shared), size_guidance=dict(scalars=0), purge_orphaned_data=True
    )
    accumulator.Reload()
    return {
        tag: [(e.step, e.value) for e in accumulator.Scalars(tag)]
        for tag in accumulator.Tags()["scalars"]
    }


def test_every_curve_has_one_value_per_step(points):
    for tag, curve in points.items():
        steps = [step for step, _ in curve]
        # MMEngine writes times of training and of validation under one tag.
        assert steps == sorted(set(steps)) or tag in ("time", "data_time"), tag
    assert [step for step, _ in points["loss"]] == list(range(1, 17))
    # At the interval, and after the fault of iteration 2.
    assert [step for step, _ in points["amp/nonfinite"]] == [3, 4, 8, 12, 16]


def test_metrics_of_the_validation_before_the_kill_stay(points):
    steps = [step for step, _ in points["coco/bbox_mAP"]]
    # Whether the last one finds a box is a matter of rounding on this torch.
    assert steps[:2] == [6, 12]
    assert set(steps) <= {6, 12, 16}


def test_counts_go_on(points):
    assert dict(points["amp/nonfinite_total"])[16] == 1
    assert dict(points["amp/rollbacks_total"])[16] == 1


def test_a_spike_just_before_the_checkpoint_is_not_lost(points):
    """Iteration 8, checkpoint 10: published by neither start but as pending value."""
    curve = dict(points[f"amp/cls_score_absmax/{LAYER}"])
    assert curve[12] > 10 * curve[8]
    assert curve[12] > 10 * curve[16]


class Board:
    """A TensorBoard process, and what it answers."""

    def __init__(self, folder, load_fast):
        command = [sys.executable, "-m", "tensorboard.main", "--logdir", folder]
        command += ["--port", 0, "--load_fast", load_fast]
        self.process = processes.start(*command, stderr=subprocess.PIPE)
        for line in self.process.stderr:
            if found := re.search(r"http://localhost:(\d+)", line):
                self.url = f"http://localhost:{found[1]}/data/plugin"
                return
        raise AssertionError("TensorBoard did not start")

    def get(self, path, **query):
        with urlopen(f"{self.url}/{path}?{urlencode(query)}", timeout=30) as answer:
            return json.loads(answer.read())

    def wait_for(self, path, tag):
        """It reads the files while it is answering already."""
        end = time.time() + 60
        while time.time() < end:
            tags = self.get(path).get(".", [])
            if tag in tags:
                return tags
            time.sleep(0.2)
        raise AssertionError(f"no {tag} in {tags}")

    def close(self):
        self.process.kill()
        self.process.communicate()


def tags_of(chart):
    """Of either kind: curves, or one with a margin."""
    if "multiline" in chart:
        return chart["multiline"]["tag"]
    (series,) = chart["margin"]["series"]
    return [series["value"], series["lower"], series["upper"]]


@pytest.mark.slow
@pytest.mark.parametrize("load_fast", ["false", "true"])
def test_what_tensorboard_serves(shared, points, load_fast):
    """Layout, points and cards, as a browser gets them."""
    board = Board(shared, load_fast)
    try:
        board.wait_for("text/tags", "amp_hooks/resume/text_summary")
        tags = set(board.wait_for("scalars/tags", "loss"))
        categories = board.get("custom_scalars/layout")["category"]
        assert [category["title"] for category in categories] == list(LAYOUT)
        charts = [chart for category in categories for chart in category["chart"]]
        served = {chart["title"]: tags_of(chart) for chart in charts}
        assert served == {title: tags for title, (_, tags) in CHARTS.items()}
        for title, patterns in served.items():
            for pattern in patterns:
                answer = board.get("custom_scalars/scalars", run=".", tag=pattern)
                assert answer["regex_valid"]
                for tag, events in answer["tag_to_events"].items():
                    steps = [step for _, step, _ in events]
                    assert steps == [step for step, _ in points[tag]], (title, tag)
                assert answer["tag_to_events"] or not any(
                    re.match(pattern, tag) for tag in tags
                )
        # All but the clamp's and the fallback's, which are not attached.
        assert {t for t in points if t.startswith("amp/")} <= tags
        cards = {
            event: board.get(
                "text/text", run=".", tag=f"amp_hooks/{event}/text_summary"
            )
            for event in ("rollback", "resume")
        }
        (rollback,), (resume,) = cards.values()
        assert rollback["step"] == 3
        assert "the forward pass was not finite" in rollback["text"]
        assert resume["step"] == 11
        assert "1 rollback so far" in resume["text"]
        assert "iter_10.pth" in resume["text"]
    finally:
        board.close()
