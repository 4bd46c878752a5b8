"""Checkpoints that lack the optimizer or the schedulers."""

import pytest

from amp_hooks.engine.safe_read import read_safely
from amp_hooks.rollback.checkpoint_file import Header
from amp_hooks.rollback.resume import Candidate, in_order
from tests import helpers, small

LACKS = {
    "schedulers": dict(save_param_scheduler=False),
    "optimizer": dict(save_optimizer=False),
    "both": dict(save_optimizer=False, save_param_scheduler=False),
}


def order(*files, scheduled=True):
    found = [
        Candidate(name, Header(i, f"{i:08d}", optimizer, schedulers=schedulers))
        for name, i, optimizer, schedulers in files
    ]
    return [c.path for c in in_order(found, None, scheduled)]


def test_complete_ones_first_then_those_with_an_optimizer():
    files = [("bare", 9, False, False), ("no schedulers", 8, True, False)]
    files += [("no optimizer", 7, False, True), ("complete", 5, True, True)]
    files += [("complete too", 3, True, True)]
    assert order(*files) == [
        "complete",
        "complete too",
        "no schedulers",
        "no optimizer",
        "bare",
    ]


def test_a_run_without_schedulers_needs_none():
    files = [("a", 9, True, False), ("b", 5, True, True)]
    assert order(*files, scheduled=False) == ["a", "b"]


def test_what_has_learned_nothing_is_not_better():
    assert order(("a", 9, True, False), ("start", 0, True, True)) == ["a", "start"]


def run(work_dir, iters, resume=False, interval=8, schedule=True, **checkpoint):
    rollback = dict(type="amp_hooks.RollbackHook", interval=interval, probation=1)
    runner = small.build(
        work_dir,
        work_dir=work_dir,
        hooks=[rollback],
        iters=iters,
        resume=resume,
        log_level="WARNING",
        checkpoint=dict(interval=5, **checkpoint),
        param_scheduler=[dict(type="PolyLR", by_epoch=False, end=41)]
        if schedule
        else None,
    )
    runner.train()
    (lr,) = runner.optim_wrapper.get_lr()["lr"]
    return runner, lr, " ".join(helpers.log(runner).split())


@pytest.mark.parametrize("lacks", LACKS)
def test_the_newest_complete_one_is_taken(tmp_path, lacks):
    run(tmp_path, 20, **LACKS[lacks])
    named = (tmp_path / "last_checkpoint").read_text()
    assert named == str(tmp_path / "rollback" / "iter_16.pth")
    runner, lr, log = run(tmp_path, 30, resume=True, **LACKS[lacks])
    assert lr == pytest.approx(0.1 * (1 - 30 / 40))
    assert [e["iter"] for e in small.ledger(runner, "resume")] == [16]
    assert "what is newer than the checkpoint taken holds no state" in log
    assert f"save_param_scheduler=True). {tmp_path}/iter_20.pth" in log
    assert "The learning rate was" not in log


@pytest.mark.parametrize("lacks", LACKS)
def test_where_there_is_none_both_rates_are_told(tmp_path, lacks):
    run(tmp_path, 20, interval=100, **LACKS[lacks])
    for path in (tmp_path / "rollback").glob("*.pth"):
        path.unlink()
    _, _, log = run(tmp_path, 21, resume=True, interval=100, **LACKS[lacks])
    now = "0.05" if lacks == "schedulers" else "0.1"
    assert f"was 0.0525 when it was saved and is {now} now" in log.replace(
        "was 0.05 when", "was 0.0525 when"
    )
    anew = "; its schedule begins anew, for 0.1. Let CheckpointHook" in log
    assert anew == (lacks != "optimizer")
    assert log.count("when it was saved") == 1


def test_a_run_without_schedulers_lacks_none(tmp_path):
    run(tmp_path, 20, schedule=False, save_param_scheduler=False)
    named = (tmp_path / "last_checkpoint").read_text()
    assert named == str(tmp_path / "iter_20.pth")
    _, _, log = run(tmp_path, 21, True, schedule=False, save_param_scheduler=False)
    assert "when it was saved" not in log
    assert "is newer" not in log
    assert "param_schedulers" not in read_safely(named)
