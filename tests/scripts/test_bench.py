"""scripts/bench_overhead.py runs and counts; what it times is not tested."""

import re

import pytest

from tests import processes

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tables():
    """Rows by title and label, of a narrow Faster R-CNN."""
    options = "--tiny --detectors faster_rcnn --size 64 --blocks 1 --block-iters 1 "
    options += "--rows monitors panel_idle panel histograms suite norm_items underflow "
    options += "--threads 1"
    done = processes.script("bench_overhead.py", *options.split())
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


@pytest.mark.long
def test_every_row_has_its_ratios(tables):
    """Those of the times beside them, and the median within its quartiles."""
    rows = tables["time of an iteration"]
    assert len(rows) == 7
    for cells in rows.values():
        ratio = float(cells["with"]) / float(cells["without"])
        assert float(cells["ratio"]) == pytest.approx(ratio, rel=0.02)
        number = r"(\d+\.\d+)"
        text = rf"{number} \({number} to {number}\)"
        middle, low, high = map(
            float, re.fullmatch(text, cells["paired ratio"]).groups()
        )
        assert low <= middle <= high


def test_counts(tables):
    counts = tables["added per iteration"]
    # In FP32 StepGuardHook has to wait for its verdict on the gradients.
    suite = "StabilityHook, between snapshots"
    for row, waits in (("all monitors", "1"), (suite, "2")):
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
    assert all(re.fullmatch(r"\d+\.\d\d", cells["ms"]) for cells in rows.values())
    scalars = {re.match(r"(\d+) scalars to \w+VisBackend", label) for label in rows}
    counts = {int(match[1]) for match in scalars if match}
    assert len(counts) == 1  # the same to each backend
    assert min(counts) > 5


def test_age_adds_nothing_to_the_counts(tables):
    rows = tables["all monitors at iteration"]
    young, old = rows["100"], rows["1,000,000"]
    for count in ("host syncs", "copies", "recorder", "collectives", "launches"):
        assert young[count] == old[count]


def test_snapshots_hold_as_much_memory_in_each_round():
    options = "--tiny --size 64 --batch-size 1 --rounds 4 --threads 1"
    done = processes.script("bench_snapshots.py", *options.split())
    lines = [line.strip("| ").split("|") for line in done.stdout.splitlines()]
    cells = {row[0].strip(): [cell.strip() for cell in row[1:]] for row in lines}
    iteration = float(cells["iteration"][0])
    for part in ("snapshot", "in the background", "rollback", "guarded"):
        ms, ratio = map(float, cells[part])
        assert ratio == pytest.approx(ms / iteration, abs=0.01, rel=0.01)
    # In the first rounds there are not yet as many as are kept.
    assert cells["3"] == cells["4"]


def test_start_and_end_are_timed():
    options = "--detectors classifier --rounds 1 --threads 1"
    done = processes.script("bench_start.py", *options.split())
    cells = re.findall(
        r"\| ([\w -]+?) +\| (-?\d+\.\d\d) +\| (-?\d.*?)% +\|", done.stdout
    )
    assert [name for name, *_ in cells] == ["start and end", "pre-flight"]


def test_the_page_holds_what_the_benchmarks_have_printed(tmp_path):
    """What is kept is not run again."""
    for name in ("classifier", "detectors", "snapshots", "start"):
        (tmp_path / f"{name}.md").write_text(f"\n### of {name}\n\n| 1 |\n")
    page = tmp_path / "cost.md"
    arguments = ("--kept", str(tmp_path), "--out", str(page))
    done = processes.script("cost_page.py", *arguments)
    assert "bench_" not in done.stderr
    found = re.findall(r"^(?:##|###) (.*)$", page.read_text(), re.M)
    assert found == [
        "An iteration that is nothing but launches",
        "of classifier",
        "An iteration of a detector",
        "of detectors",
        "Snapshots, rollbacks, checkpoints",
        "of snapshots",
        "Once in a run",
        "of start",
    ]
