"""FlexibleRunner reads a checkpoint before any hook is asked; it is guarded alike."""

import os

import pytest
import torch
from mmengine.runner import FlexibleRunner

from amp_hooks.rollback.flexible import ask_before_load
from tests import helpers, processes, small
from tests.rollback.flexible import build


def iters(runner, event):
    return [line["iter"] for line in small.ledger(runner, event)]


def test_train_roll_back_resume(tmp_path):
    bad = small.SpoilInputs(at=range(15, 19))
    first = build(tmp_path, bad, iters=25, every=25)
    first.train()
    (line,) = small.ledger(first, "rollback")
    assert (line["iter"], line["target_iter"]) == (17, 10)
    again = build(tmp_path, resume=True)
    again.train()
    (line,) = small.ledger(again, "resume")
    assert (line["iter"], line["rollbacks"]) == (25, 1)
    assert again.iter == 45


@helpers.SKIPS_DONE_BATCHES
def test_a_resumed_run_is_the_run_that_was_not_killed(tmp_path):
    whole = build(tmp_path / "a", every=20)
    whole.train()
    build(tmp_path / "b", iters=20, every=20).train()
    again = build(tmp_path / "b", resume=True)
    again.train()
    assert small.same(small.state(again), small.state(whole))
    assert again.optim_wrapper.get_lr() == whole.optim_wrapper.get_lr()


@pytest.fixture
def ended(tmp_path):
    build(tmp_path).train()
    newest = tmp_path / "rollback" / "iter_40.pth"
    assert (tmp_path / "last_checkpoint").read_text() == str(newest)
    return tmp_path, newest


def older(work_dir):
    """Iteration of the file that comes before the newest."""
    numbers = [int(p.stem[5:]) for p in work_dir.glob("rollback/iter_*.pth")]
    return sorted(numbers)[-2]


@pytest.mark.parametrize("suite", [False, True])
def test_the_pointer_is_lost(ended, suite):
    work_dir, newest = ended
    (work_dir / "last_checkpoint").unlink()
    before = newest.read_bytes()
    options = {}
    if suite:
        members = dict(panel=None, preflight=None, step_guard=None)
        members.update(rollback=dict(interval=10, probation=1))
        options["rollback"] = dict(type="amp_hooks.StabilityHook", **members)
    again = build(work_dir, iters=42, resume=True, **options)
    again.train()
    assert iters(again, "resume") == [40]
    assert newest.read_bytes() == before


def test_what_is_named_is_truncated(ended):
    work_dir, newest = ended
    os.truncate(newest, newest.stat().st_size // 2)
    again = build(work_dir, resume=True)
    again.train()
    assert iters(again, "resume") == [older(work_dir)]
    assert f"passes over\n{newest}" in helpers.log(again)


@pytest.mark.parametrize("argument", ["resume", "load_from"])
def test_what_the_user_names_is_taken_or_refused(ended, argument):
    work_dir, newest = ended
    before = older(work_dir)
    path = str(work_dir / "rollback" / f"iter_{before}.pth")
    options = dict(resume=True, load_from=path)
    if argument == "resume":
        options = dict(resume=path)
    again = build(work_dir, iters=before + 1, **options)
    again.train()
    assert [line["checkpoint"] for line in small.ledger(again, "resume")] == [path]
    os.truncate(path, 1000)
    files = {p: p.stat().st_mtime_ns for p in work_dir.rglob("*.pth")}
    with pytest.raises(RuntimeError, match="truncated"):
        build(work_dir, **options).train()
    assert {p: p.stat().st_mtime_ns for p in work_dir.rglob("*.pth")} == files


def test_asked_once():
    before = FlexibleRunner.load_or_resume
    ask_before_load()
    assert FlexibleRunner.load_or_resume is before


def test_ddp_on_two_ranks(tmp_path):
    program = ["-m", "tests.rollback.flexible", tmp_path]
    processes.two_ranks(*program, "anew", cwd=helpers.ROOT)
    (tmp_path / "last_checkpoint").unlink()
    processes.two_ranks(*program, "resume", cwd=helpers.ROOT)
    a, b = (torch.load(tmp_path / f"end.{rank}.pth") for rank in (0, 1))
    assert (a["iter"], a["lr"]) == (b["iter"], b["lr"])
    learned = [name for name in a["state"] if "running" not in name]
    assert all(torch.equal(a["state"][n], b["state"][n]) for n in learned)
    first, second = sorted(tmp_path.glob("*/stability.jsonl"))
    lines = helpers.read_ledger(first)
    assert [e["target_iter"] for e in lines if e["event"] == "rollback"] == [10]
    (resumed,) = [e for e in helpers.read_ledger(second) if e["event"] == "resume"]
    assert resumed["rollbacks"] == 1


def test_averages_that_cannot_be_resumed_are_told_at_the_start(tmp_path, capsys):
    """Stock fails alike, but days later."""
    average = dict(type="EMAHook", priority=49)
    build(tmp_path, average, iters=25, every=20).train()
    assert "a run of FlexibleRunner with EMAHook cannot be resumed" in (
        capsys.readouterr().out
    )
    with pytest.raises(AttributeError, match="ema_model"):
        build(tmp_path, average, resume=True).train()
