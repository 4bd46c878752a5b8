"""The command, as a user calls it."""

import json
import re

import pytest

from amp_hooks.cli import main
from amp_hooks.doctor import cli
from amp_hooks.doctor.rows import BROKEN, FINDING, NOTE, Row
from tests import processes


@pytest.mark.slow
def test_here_training_works(tmp_path):
    """From a folder that is no checkout; without a GPU, it says so."""
    done = processes.python(
        *("-m", "amp_hooks", "doctor", "--json", "found.json"),
        cwd=tmp_path,
        CUDA_VISIBLE_DEVICES="",
    )
    assert done.stderr == ""
    assert "Training with amp_hooks works here.\n" in done.stdout
    assert "bash scripts/gpu_check.sh" in done.stdout
    assert "GPU (note): Training goes to the CPU" in done.stdout
    found = json.loads((tmp_path / "found.json").read_text())
    rows = {row["what"]: row for row in found["rows"]}
    assert found["status"] == 0
    assert {
        *("torch", "mmengine", "mmcv", "mmdet", "GPU", "mmcv's operators", "nms, cpu"),
        *("roi_align, cpu", "FP32, cpu", "BF16, cpu", "StepGuardHook", "gloo"),
        "disk, this folder",
    } <= set(rows)
    assert {row["result"] for row in rows.values()} <= {"ok", "note"}
    for row in rows.values():
        assert f"| {row['what']} " in done.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["found.json"]


@pytest.fixture
def found(monkeypatch):
    def become(*rows):
        monkeypatch.setattr(cli, "run_all", lambda *more: iter(rows))

    return become


@pytest.mark.parametrize(
    ("result", "status", "words"),
    [
        (NOTE, 0, "Training with amp_hooks works here.\n"),
        (FINDING, 1, "works here; see the findings"),
        (BROKEN, 2, "Something that training needs does not work here"),
    ],
)
def test_exit_status(found, capsys, result, status, words):
    found(Row("disk", "full", result, "Make room."), Row("torch", "2.0"))
    assert main(["doctor"]) == status
    shown = capsys.readouterr()
    assert words in shown.out
    assert f"- disk ({result}): Make room.\n" in shown.out
    assert shown.err == ""


def test_a_file_that_cannot_be_written(found, tmp_path, capsys):
    found(Row("torch", "2.0"))
    assert main(["doctor", "--json", str(tmp_path / "no/found.json")]) == 73
    assert "cannot write" in capsys.readouterr().err


def test_wrong_arguments(capsys):
    with pytest.raises(SystemExit) as e:
        main(["doctor", "here"])
    assert e.value.code == 64
    assert "amp-hooks doctor: error" in capsys.readouterr().err


def test_on_a_terminal(found, monkeypatch, capsys):
    """A table that fits; the result is in words as well."""
    found(Row("mmcv's operators", "a long message " * 20, BROKEN, "Build it."))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "70")
    assert main(["doctor"]) == 2
    shown = re.sub("\x1b\\[[\\d;]*m", "", capsys.readouterr().out)
    assert "does not work" in shown
    assert max(map(len, shown.split("- mmcv")[0].splitlines())) <= 70
