"""Files as a kill, another version or another program leaves them."""

import json

import numpy as np
import pytest
from torch.utils.tensorboard import SummaryWriter

from amp_hooks.report.cli import main
from amp_hooks.report.judge.incidents import find
from amp_hooks.report.judge.status import Status, judge
from amp_hooks.report.read.config import parse_config
from amp_hooks.report.read.curves import Curve
from amp_hooks.report.read.work_dir import NoRunError, read_run

from ..made import line, start_line


def write(folder, lines, scalars=None, config=None):
    (folder / "vis_data").mkdir(parents=True)
    if lines is not None:
        text = "\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines)
        (folder / "stability.jsonl").write_text(text)
    if scalars is not None:
        text = "".join(json.dumps(x) + "\n" for x in scalars)
        (folder / "vis_data" / "scalars.json").write_text(text)
    if config is not None:
        (folder / "vis_data" / "config.py").write_text(config)


def logged(step, loss, **more):
    return {"lr": 0.1, "loss": loss, "iter": step, "step": step, **more}


def test_a_ledger_cut_short_with_lines_of_another_version(tmp_path):
    lines = [
        start_line(),
        dict(iter=3, event="new kind", verdict="NEW", field=[1]),
        dict(event="overflow"),  # no iteration
        dict(iter=10**30, event="overflow", verdict="GRAD_NONFINITE"),
        line(4, "overflow", "NEW VERDICT"),
        '{"iter": 5, "event": "over',
    ]
    write(tmp_path / "20260101_000000", lines)
    run = read_run(tmp_path)
    assert [h.event for h in run.happenings] == ["start", "new kind", "overflow"]
    assert run.notes == []
    assert judge(run, find(run)).status is Status.HEALTHY


def test_a_damaged_ledger_gets_a_note(tmp_path):
    write(tmp_path / "20260101_000000", [start_line(), "\x00\x00", "{", "[]"])
    assert "3 lines of" in read_run(tmp_path).notes[0]


def test_steps_of_training_and_of_validation(tmp_path):
    """LocalVisBackend writes bare NaN; a validation's step may be an epoch."""
    scalars = [
        {"amp/scale_log2": 16.0, "step": 4},
        logged(10, float("nan")),
        {"coco/bbox_mAP": 0.25, "data_time": 0.1, "time": 0.2, "step": 1},
        logged(20, 1.5, epoch=2),
        {"val/coco/bbox_mAP": 0.5, "val/time": 0.2, "step": 2},
        {"my own": 3.0, "step": 7},
    ]
    write(tmp_path / "20260101_000000", None, scalars)
    run = read_run(tmp_path)
    assert run.curves["amp/scale_log2"].iters.tolist() == [3]
    assert run.curves["loss"].iters.tolist() == [9, 19]
    assert np.isnan(run.curves["loss"].values[0])
    found = [(v.iter, v.metrics) for v in run.validations]
    assert found == [(9, {"coco/bbox_mAP": 0.25}), (19, {"coco/bbox_mAP": 0.5})]


def test_tensorboard_files(tmp_path):
    """There a validation's place is told by the clock."""
    folder = tmp_path / "20260101_000000" / "vis_data"
    with SummaryWriter(str(folder)) as writer:
        for now, step in ((100, 10), (300, 20)):
            writer.add_scalar("loss", 1.0, step, walltime=now)
            writer.add_scalar("amp/scale_log2", 16.0, step, walltime=now)
        writer.add_scalar("coco/bbox_mAP", 0.25, 1, walltime=200)
        writer.add_scalar("time", 0.1, 1, walltime=200)
    run = read_run(tmp_path)
    assert run.curves["loss"].iters.tolist() == [9, 19]
    assert run.curves["amp/scale_log2"].iters.tolist() == [9, 19]
    assert [(v.iter, v.metrics) for v in run.validations] == [
        (9, {"coco/bbox_mAP": 0.25})
    ]


def test_two_starts_without_a_ledger(tmp_path):
    """The later one began before the first had ended: its first step tells."""
    write(tmp_path / "20260101_000000", None, [logged(s, 1.0) for s in (10, 20, 30)])
    write(tmp_path / "20260101_000001", None, [logged(s, 2.0) for s in (20, 30, 40)])
    run = read_run(tmp_path)
    loss = run.curves["loss"]
    assert loss.iters.tolist() == [9, 19, 29, 39]
    assert loss.values.tolist() == [1.0, 2.0, 2.0, 2.0]


def test_folders_that_are_no_start_are_passed_over(tmp_path):
    write(tmp_path / "20260101_000000", [start_line()])
    write(tmp_path / "20260101_000001", None, config="a = 1")  # a test run
    (tmp_path / "rollback").mkdir()
    (tmp_path / "last_checkpoint").write_text("/not/there.pth")
    run = read_run(tmp_path)
    assert [s.name for s in run.starts] == ["20260101_000000"]
    assert run.checkpoint is None


def test_a_checkpoint_that_is_none_gets_a_note(tmp_path):
    write(tmp_path / "20260101_000000", [start_line()])
    (tmp_path / "iter_9.pth").write_bytes(b"not a checkpoint")
    (tmp_path / "last_checkpoint").write_text("/moved/from/iter_9.pth")
    assert "iter_9.pth could not be read" in read_run(tmp_path).notes[0]
    assert read_run(tmp_path, use_checkpoint=False).notes == []


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(NoRunError, match=f"{tmp_path} holds no training run.*work_dir"):
        read_run(tmp_path)
    with pytest.raises(NoRunError, match="is not a folder"):
        read_run(tmp_path / "missing")


def test_a_run_without_an_iteration_is_no_healthy_run(tmp_path, capsys):
    write(tmp_path / "20260101_000000", [start_line()])
    assert main([str(tmp_path)]) == 66
    out, err = capsys.readouterr()
    assert "no iteration of the run" in err
    assert out == ""


def test_a_ledger_that_cannot_be_read_is_not_denied(tmp_path, capsys):
    points = [logged(1, 1.0), logged(2, 1.0)]
    write(tmp_path / "20260101_000000", ["{nonsense"], points)
    assert main([str(tmp_path)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "has no line that can be read" in text
    assert "No ledger that can be read" in text


def test_a_single_start_names_its_work_dir(tmp_path):
    write(tmp_path / "20260101_000000", [start_line()])
    with pytest.raises(NoRunError, match="Give the folder above it"):
        read_run(tmp_path / "20260101_000000")


def test_a_config_is_read_and_not_run(tmp_path):
    text = (
        "a = dict(b=[1, -2.5, None, inf], c=(dict(type='X'), ))\n"
        "d = {'with space': dict(e='f')}\n"
        f"evil = open({str(tmp_path / 'made')!r}, 'w')\n"
        "import os\n"
        "g = dict(h=os.getcwd())\n"
    )
    assert parse_config(text) == dict(
        a=dict(b=[1, -2.5, None, float("inf")], c=(dict(type="X"),)),
        d={"with space": dict(e="f")},
    )
    assert not (tmp_path / "made").exists()


def test_a_config_that_is_no_config_gets_a_note(tmp_path):
    write(tmp_path / "20260101_000000", [start_line()], config="a = = 1")
    assert "config.py could not be read" in read_run(tmp_path).notes[0]


def test_thinned_curves_keep_peaks_lows_and_nan():
    values = np.ones(1_000_000)
    values[[123_456, 123_457, 500_000]] = [1e9, np.nan, -1e9]
    values[600_000:] = np.nan
    thin = Curve(np.arange(1_000_000), values).thinned()
    assert len(thin) <= 2000
    assert {123_456, 500_000} <= set(thin.iters.tolist())
    assert np.isnan(thin.values[thin.iters >= 600_000]).all()
    assert thin.iters[-1] >= 999_000
    assert (np.diff(thin.iters) > 0).all()
