import json
import os

import pytest

from amp_hooks.engine.files import publish, write_text
from amp_hooks.engine.ledger import Ledger


def refuse(name):
    raise ValueError(f"{name} is not JSON")


def read(path):
    with open(path) as f:
        return [json.loads(line, parse_constant=refuse) for line in f]


def test_strict_json_one_object_a_line(tmp_path):
    ledger = Ledger(str(tmp_path / "made" / "stability.jsonl"))
    ledger.write(3, "overflow", "HEALTHY", scale=float("nan"), ranks=[float("inf")])
    ledger.write(4, "overflow", "FORWARD_NONFINITE", losses={"x": float("-inf")})
    assert read(ledger.path) == [
        dict(iter=3, event="overflow", verdict="HEALTHY", scale="nan", ranks=["inf"]),
        dict(
            iter=4, event="overflow", verdict="FORWARD_NONFINITE", losses={"x": "-inf"}
        ),
    ]


def test_growth_is_bounded(tmp_path):
    ledger = Ledger(str(tmp_path / "stability.jsonl"), max_events=3)
    for i in range(10):
        ledger.write(i, "overflow", "SCALE_OVERFLOW")
    ledger.write(10, "end", "HEALTHY", time="2026-11-21T12:00:00+00:00")
    lines = read(ledger.path)
    events = [line["event"] for line in lines]
    assert events == ["overflow"] * 3 + ["truncated", "end"]
    assert lines[3] == dict(
        iter=3, event="truncated", verdict="SCALE_OVERFLOW", max_events=3
    )


def test_no_file_without_an_event(tmp_path):
    Ledger(str(tmp_path / "stability.jsonl"))
    assert os.listdir(tmp_path) == []


def test_a_failed_write_leaves_the_old_text(tmp_path):
    path = tmp_path / "last_checkpoint"
    write_text(str(path), "old")
    (tmp_path / "last_checkpoint.tmp").mkdir()  # the temporary cannot be opened
    with pytest.raises(OSError, match="last_checkpoint.tmp"):
        write_text(str(path), "new")
    assert path.read_text() == "old"


def test_publish_replaces(tmp_path):
    (tmp_path / "a").write_text("new")
    (tmp_path / "b").write_text("old")
    publish(str(tmp_path / "a"), str(tmp_path / "b"))
    assert (tmp_path / "b").read_text() == "new"
    assert os.listdir(tmp_path) == ["b"]
