"""After a good end nothing of rollback/ is left, but what last_checkpoint names."""

import math
import shutil

import pytest
import torch

from tests import small

pytestmark = pytest.mark.usefixtures("good_end")


def left(work_dir):
    folder = work_dir / "rollback"
    return sorted(p.name for p in folder.iterdir()) if folder.exists() else None


def run(work_dir, *hooks, **options):
    rollback = dict(type="amp_hooks.RollbackHook", interval=10, probation=1)
    options = dict(dict(iters=35), **options)
    return small.build(work_dir, work_dir=work_dir, hooks=[rollback, *hooks], **options)


def named(work_dir):
    return (work_dir / "last_checkpoint").read_text()


def test_only_what_is_named(tmp_path):
    run(tmp_path).train()
    assert left(tmp_path) == ["iter_30.pth"]
    assert named(tmp_path) == str(tmp_path / "rollback" / "iter_30.pth")


def test_nothing_where_checkpoint_hook_has_the_last(tmp_path):
    run(tmp_path, checkpoint=dict(interval=35)).train()
    assert left(tmp_path) is None
    assert named(tmp_path) == str(tmp_path / "iter_35.pth")


def test_the_work_dir_is_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "work").symlink_to(tmp_path / "disk")
    run(tmp_path / "work").train()
    assert left(tmp_path / "disk") == ["iter_30.pth"]


def test_a_run_that_is_made_longer_goes_on(tmp_path):
    bad = small.SpoilInputs(at=range(15, 19))
    run(tmp_path, dict(type="amp_hooks.StepGuardHook"), bad).train()
    runner = run(tmp_path, iters=45, resume=True)
    runner.train()
    (line,) = small.ledger(runner, "resume")
    assert (line["iter"], line["rollbacks"]) == (30, 1)
    assert left(tmp_path) == ["iter_40.pth"]


class Stop(Exception):
    pass


class End(small.Hook):
    def __init__(self, at=33):
        self.at = at

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.at:
            raise Stop


def test_nor_of_the_process_that_was_killed(tmp_path):
    with pytest.raises(Stop):
        run(tmp_path, End(18)).train()
    assert {"iter_0.pth", "iter_10.pth"} <= set(left(tmp_path))
    run(tmp_path, resume=True).train()
    assert left(tmp_path) == ["iter_30.pth"]


def test_all_stay_where_the_end_was_not_good(tmp_path):
    with pytest.raises(Stop):
        run(tmp_path, End()).train()
    assert {"attempts.json", "iter_20.pth"} <= set(left(tmp_path))


def test_files_of_an_earlier_run_that_came_further_stay(tmp_path):
    """Somebody forgot to resume; it may be days of work."""
    run(tmp_path).train()
    before = tmp_path / "rollback" / "iter_30.pth"
    shutil.copy(before, before.with_name("iter_9000.pth"))
    run(tmp_path).train()
    assert left(tmp_path) == ["iter_30.pth", "iter_9000.pth"]


class SpoilWeight(small.Hook):
    """Where a snapshot is due, which finds it."""

    priority = "VERY_HIGH"

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == 20:
            with torch.no_grad():
                runner.model.bbox_head.fc_cls.weight.fill_(math.nan)


def test_a_file_after_a_rollback_between_two_iterations_stays(tmp_path):
    """With its counts, though it has the number of the iteration that went back."""
    run(tmp_path, SpoilWeight(), iters=25).train()
    assert named(tmp_path) == str(tmp_path / "rollback" / "iter_20.pth")
    runner = run(tmp_path, iters=35, resume=True)
    runner.train()
    (line,) = small.ledger(runner, "resume")
    assert (line["iter"], line["rollbacks"]) == (20, 1)
