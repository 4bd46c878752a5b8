"""Every visualization backend has the same scalars: read back from its own files."""

import json
import math
from collections import defaultdict
from pathlib import Path

import mlflow
import pytest
import wandb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from amp_hooks.panel.scalars import as_files, legal_name
from tests import helpers


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No network, no telemetry, nothing left running."""
    for name, value in {
        "MLFLOW_ALLOW_FILE_STORE": "true",  # else MLflow 3.17 wants a database
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": "false",
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "WANDB_CONSOLE": "off",
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_DISABLE_GIT": "true",
        "WANDB_X_DISABLE_STATS": "true",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)  # wandb keeps the code that it finds
    yield
    wandb.finish()
    wandb.teardown()
    while mlflow.active_run():
        mlflow.end_run()


def of_local(runner):
    points = defaultdict(dict)
    path = Path(runner.log_dir) / "vis_data" / "scalars.json"
    for line in map(json.loads, path.read_text().splitlines()):
        for name, value in line.items():
            points[name][line["step"]] = value
    return points


def of_tensorboard(runner):
    accumulator = EventAccumulator(
        str(Path(runner.log_dir) / "vis_data"), size_guidance=dict(scalars=0)
    )
    accumulator.Reload()
    return {
        tag: {e.step: e.value for e in accumulator.Scalars(tag)}
        for tag in accumulator.Tags()["scalars"]
    }


def of_wandb(folder):
    """One dict for each call of ``wandb.log``."""
    from wandb.proto.wandb_internal_pb2 import Record
    from wandb.sdk.internal.datastore import DataStore

    (path,) = Path(folder).rglob("*.wandb")
    store = DataStore()
    store.open_for_scan(str(path))
    calls = []
    while (data := store.scan_data()) is not None:
        items = Record.FromString(data).history.item
        if items:
            calls.append(
                {
                    i.key or ".".join(i.nested_key): json.loads(i.value_json)
                    for i in items
                }
            )
    store.close()
    return calls


def of_mlflow(uri):
    client = mlflow.MlflowClient(uri)
    points = {}
    for experiment in client.search_experiments():
        for run in client.search_runs([experiment.experiment_id]):
            for name in run.data.metrics:
                history = client.get_metric_history(run.info.run_id, name)
                points[name] = {m.step: m.value for m in history}
    return points


@pytest.mark.slow
def test_all_backends_have_the_same_scalars(build, offline, tmp_path):
    """A fault, an OptimWrapper that clips, and groups named as nobody should."""
    groups = {"head*cls": "*cls*", "head?cls": "*reg*", "../x": "neck.*", "ok": "*"}
    hooks = [
        helpers.infinite_images(4),
        *helpers.SUITE[:2],
        dict(type="amp_hooks.GradNormMonitorHook", groups=groups),
        *helpers.SUITE[3:5],
        helpers.SUITE[6],
        dict(type="amp_hooks.StabilityPanelHook", interval=3),
    ]
    store = f"file://{tmp_path}/store"
    backends = [
        dict(type="LocalVisBackend"),
        dict(type="TensorboardVisBackend"),
        dict(type="WandbVisBackend", init_kwargs=dict(mode="offline")),
        dict(type="MLflowVisBackend", tracking_uri=store, tracked_config_keys=()),
    ]
    runner = build(
        "faster_rcnn",
        iters=8,
        hooks=hooks,
        # No overflow but the fault's.
        options={
            "visualizer.vis_backends": backends,
            "optim_wrapper.loss_scale": 128.0,
        },
    )
    calls = defaultdict(list)
    for kind, backend in runner.visualizer._vis_backends.items():

        def spy(scalars, step=0, *args, _kind=kind, _own=backend.add_scalars, **more):
            if any(name.startswith("amp/") for name in scalars):
                calls[_kind].append((step, len(scalars)))
            _own(scalars, step, *args, **more)

        backend.add_scalars = spy
    runner.train()
    wandb.finish()

    # One call per publication: at the interval, at the fault, at the end.
    assert [step for step, _ in calls["LocalVisBackend"]] == [3, 5, 6, 8]
    assert all(c == calls["LocalVisBackend"] for c in calls.values())
    assert len(calls) == len(backends)

    local = {n: p for n, p in of_local(runner).items() if n.startswith("amp/")}
    assert {
        "amp/scale_log2",
        "amp/gradnorm",
        "amp/gradnorm/ok",
        legal_name("amp/gradnorm/head*cls"),
        legal_name("amp/gradnorm/head?cls"),
        legal_name("amp/gradnorm/../x"),
        "amp/clip_max_norm",
        "amp/cls_score_log2/roi_head.bbox_head.fc_cls",
        "amp/clamp_limit_log2",
        "amp/nonfinite_total",
        "amp/vetoes_total",
        "amp/rollbacks_total",
        "amp/lr_factor",
    } <= set(local)
    assert local["amp/nonfinite_total"] == {3: 0, 5: 1, 6: 1, 8: 1}
    assert all(math.isfinite(v) for points in local.values() for v in points.values())

    board = {n: p for n, p in of_tensorboard(runner).items() if n.startswith("amp/")}
    assert set(board) == set(local)
    for name, points in local.items():
        assert board[name] == pytest.approx(points, rel=1e-6), name

    stored = {n: p for n, p in of_mlflow(store).items() if n.startswith("amp/")}
    assert stored == as_files(local)

    logged = [
        {n: v for n, v in call.items() if n.startswith("amp/")}
        for call in of_wandb(Path(runner.log_dir) / "vis_data")
    ]
    steps = [step for step, _ in calls["LocalVisBackend"]]
    assert [call for call in logged if call] == [
        {name: points[step] for name, points in local.items() if step in points}
        for step in steps
    ]
