"""scripts/bench_overhead.py runs and counts; what it times is not tested."""

import subprocess
import sys

import pytest

from tests import helpers


@pytest.fixture(scope="module")
def tables():
    """Rows by title and label, of a narrow Faster R-CNN."""
    done = subprocess.run(
        [sys.executable, helpers.ROOT / "scripts/bench_overhead.py", "--tiny"]
        + "--detectors faster_rcnn --size 64 --blocks 1 --block-iters 1".split()
        + "--rows monitors panel_idle panel histograms suite norm_items underflow "
        "--threads 1".split(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Same loss in every row: yes" in done.stdout
    found, titles = {}, None
    for line in done.stdout.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            titles = None
        elif titles is None:
            titles = cells
            found[titles[0]] = {}
        elif set(cells[0]) != {"-"}:
            found[titles[0]][cells[0]] = dict(zip(titles[1:], cells[1:]))
    return found


def test_every_row_has_a_ratio(tables):
    rows = tables["time of an iteration"]
    assert len(rows) == 7
    for cells in rows.values():
        assert float(cells["ratio"]) > 0
        assert float(cells["paired ratio"].split()[0]) > 0


def test_counts(tables):
    counts = tables["added per iteration"]
    # In FP32 StepGuardHook has to wait for its verdict on the gradients.
    for row, waits in (("all monitors", "1"), ("whole suite, no snapshots", "2")):
        assert counts[row]["recorder"] == "1"
        assert counts[row]["copies"] == counts[row]["host syncs"] == waits
        assert counts[row]["collectives"] == "0"
    # What is published has been on the host already; only histograms are copied.
    idle, busy = "monitors, idle panel", "monitors, panel publishing in every iteration"
    assert counts[idle] == counts[busy] == counts["all monitors"]
    histograms = counts["the same with histograms in every iteration"]
    assert float(histograms["copies"]) == 1 + 3  # two layers' logits, the norms
    for rival in (".item() per parameter norm", "DebugUnderflowOverflow"):
        (cells,) = [c for name, c in counts.items() if name.startswith(rival)]
        assert float(cells["host syncs"]) > 30


def test_what_the_panel_writes_is_timed(tables):
    rows = tables["written by StabilityPanelHook"]
    assert len(rows) == 5
    assert all(float(cells["ms"]) > 0 for cells in rows.values())


def test_age_adds_nothing_to_the_counts(tables):
    rows = tables["all monitors at iteration"]
    young, old = rows["100"], rows["1,000,000"]
    for count in ("host syncs", "copies", "recorder", "collectives", "kernels"):
        assert young[count] == old[count]


def test_snapshots_hold_as_much_memory_in_each_round():
    done = subprocess.run(
        [sys.executable, helpers.ROOT / "scripts/bench_snapshots.py", "--tiny"]
        + "--size 64 --batch-size 1 --rounds 4 --threads 1".split(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.strip("| ").split("|") for line in done.stdout.splitlines()]
    cells = {row[0].strip(): [cell.strip() for cell in row[1:]] for row in lines}
    for part in ("snapshot", "in the background", "rollback", "MMEngine checkpoint"):
        assert float(cells[part][1]) > 0
    # The first round has no second snapshot that is younger than the first step.
    assert cells["2"] == cells["3"] == cells["4"]
