"""``resume=True`` goes on from the newest checkpoint that is whole and finite."""

import math
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer

from amp_hooks.engine.safe_read import read_safely
from amp_hooks.engine.torch_api import TORCH
from amp_hooks.rollback.checkpoint_file import Header, damage
from amp_hooks.rollback.resume import Candidate, choose_resume, in_order
from tests import helpers

CLS = "bbox_head.retina_cls.weight"
LOOPS = {"iter": dict(iters=5), "epoch": dict(epochs=1)}  # 12 iterations


RESUME = dict(resume=True, log_level="WARNING")


def rollback():
    return dict(type="amp_hooks.RollbackHook", interval=2)


@pytest.fixture(scope="module", params=LOOPS)
def runs(request, digits, tmp_path_factory):
    """The loop; what a run has left there; and a runner that is going to resume."""
    loop = request.param
    work_dir = tmp_path_factory.mktemp(loop) / "work"
    options = dict(work_dir=work_dir, hooks=[rollback()], **LOOPS[loop])
    runner = helpers.build_runner("retinanet", digits, **options)
    runner.train()
    runner.visualizer.close()
    runner = helpers.build_runner("retinanet", digits, **options, options=RESUME)
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    yield loop, shutil.copytree(work_dir, work_dir.with_name("kept")), runner
    runner.visualizer.close()


class Run:
    """A work_dir with three checkpoints, the newest first, and who resumes there."""

    def __init__(self, loop, kept, runner):
        self.loop, self.runner = loop, runner
        self.work_dir = Path(runner.work_dir)
        for path in self.work_dir.rglob("*.pth"):
            path.unlink()
        shutil.copytree(kept, self.work_dir, dirs_exist_ok=True)
        self.newest = self.work_dir / (
            "iter_5.pth" if loop == "iter" else "epoch_1.pth"
        )
        numbered = {int(p.stem[5:]): p for p in self.work_dir.glob("rollback/*.pth")}
        *_, self.older, self.ours = (numbered[i] for i in sorted(numbered))
        self.pointer = self.work_dir / "last_checkpoint"
        assert self.pointer.read_text() == str(self.newest)
        runner._load_from, runner._resume = None, True
        for handler in runner.logger.handlers:
            for unique in handler.filters:  # MMEngine logs the same warning only once
                unique.seen.clear()
        self._seen = len(helpers.log(runner))

    @property
    def log(self):
        """What was logged in this test."""
        return " ".join(helpers.log(self.runner)[self._seen :].split())


@pytest.fixture
def run(runs):
    return Run(*runs)


def change(path, key, name, value=math.nan):
    saved = read_safely(path)
    saved[key][name].view(-1)[0] = value
    torch.save(saved, path)


def first_moment(path):
    saved = read_safely(path)
    saved["optimizer"]["state"][3]["exp_avg"].view(-1)[0] = math.inf
    torch.save(saved, path)


def scale_of_zero(path):
    saved = read_safely(path)
    saved["optimizer"]["loss_scaler"]["scale"] = 0.0
    torch.save(saved, path)


def cut(part):
    return lambda path: os.truncate(path, int(os.path.getsize(path) * part))


def flip_a_bit(path):
    weight = read_safely(path)["state_dict"][CLS]
    content = bytearray(path.read_bytes())
    content[content.index(weight.numpy().tobytes()) + 5] ^= 1
    path.write_bytes(content)


class Foreign:
    def __init__(self, made):
        self.made = str(made)

    def __reduce__(self):
        return os.mkdir, (self.made,)


def foreign(path):
    made = path.with_suffix(".made")
    torch.save(dict(meta=dict(iter=99), state_dict=Foreign(made)), path)


DAMAGE = {
    "cut 0.1": (cut(0.1), "truncated"),
    "cut 0.7": (cut(0.7), "truncated"),
    "cut 0.99": (cut(0.99), "truncated"),
    "empty": (lambda path: os.truncate(path, 0), "empty"),
    "bit": (flip_a_bit, "checksum"),
    "nan weight": (lambda path: change(path, "state_dict", CLS), f"finite.*{CLS}"),
    "nan ema": (
        lambda path: change(path, "ema_state_dict", f"module.{CLS}"),
        f"finite.*module.{CLS}",
    ),
    "inf optimizer": (first_moment, "finite.*exp_avg"),
    "scale": (scale_of_zero, "loss scale is 0"),
    "foreign": (foreign, "weights_only.*mkdir"),
    "missing": (os.remove, "not exist"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_the_next_one_is_taken_and_the_damaged_one_named(run, kind):
    spoil, words = DAMAGE[kind]
    spoil(run.newest)
    assert choose_resume(run.runner) == str(run.ours)
    assert run.runner._load_from == str(run.ours)
    assert run.log.count("resume passes over") == 1
    assert re.search(f"passes over {run.newest} for .*{words}", run.log), run.log
    # The pointer does not go on naming it.
    assert run.pointer.read_text() == str(run.ours)
    assert not run.newest.with_suffix(".made").exists()


def test_nothing_is_damaged(run):
    assert choose_resume(run.runner) == str(run.newest)
    assert "passes over" not in run.log


@pytest.mark.skipif(TORCH < (2, 5), reason="has no safe_globals")
def test_after_a_load_of_onedl_mmengine(run):
    """It allows what a checkpoint needs for its own load, then forbids it to all."""
    with torch.serialization.safe_globals([HistoryBuffer, np.ndarray, np.dtype]):
        read_safely(run.newest)
    assert damage(str(run.newest)) is None


def test_two_are_damaged(run):
    cut(0.5)(run.newest)
    flip_a_bit(run.ours)
    assert choose_resume(run.runner) == str(run.older)
    assert f"passes over {run.newest}" in run.log
    assert f"passes over {run.ours}" in run.log


@pytest.mark.parametrize("left", ["", "\0\0", "/nowhere/iter_99.pth", None])
def test_a_pointer_that_is_lost(run, left):
    run.pointer.unlink() if left is None else run.pointer.write_text(left)
    assert choose_resume(run.runner) == str(run.newest)
    assert run.pointer.read_text() == str(run.newest)


def test_a_pointer_that_lags_behind(run):
    """The process was killed between the checkpoint and the pointer."""
    run.pointer.write_text(str(run.older))
    assert choose_resume(run.runner) == str(run.newest)


def test_none_can_be_used(run):
    paths = sorted(run.work_dir.rglob("*.pth"))
    for path in paths:
        cut(0.5)(path)
    with pytest.raises(RuntimeError, match="no checkpoint.*can be used") as info:
        choose_resume(run.runner)
    assert all(str(path) in str(info.value) for path in paths)
    assert "delete" in str(info.value)


def test_what_the_user_names_is_taken_or_refused(run):
    run.runner._load_from = str(run.older)
    assert choose_resume(run.runner) is None
    assert run.runner._load_from == str(run.older)
    flip_a_bit(run.older)
    with pytest.raises(RuntimeError, match=f"{run.older}.*checksum.*leave load_from"):
        choose_resume(run.runner)


def test_nothing_is_done_to_a_run_that_is_not_resumed(run):
    run.runner._resume = False
    before = sorted(run.work_dir.rglob("*"))
    assert choose_resume(run.runner) is None
    assert run.runner._load_from is None
    assert sorted(run.work_dir.rglob("*")) == before


def test_a_real_run_goes_on(run, build):
    """From training to training, with the newest file of CheckpointHook cut short."""
    cut(0.8)(run.newest)
    saved = read_safely(run.ours)
    resumed = build(
        "retinanet",
        work_dir=run.work_dir,
        hooks=[rollback()],
        options=RESUME,
        **(dict(iters=6) if run.loop == "iter" else dict(epochs=1)),
    )
    resumed.train()
    assert f"passes over\n{run.newest}" in helpers.log(resumed)
    (event,) = helpers.ledger(resumed, "resume")
    assert event["iter"] == saved["meta"]["iter"]
    assert resumed.iter > event["iter"]
    named = read_safely(run.pointer.read_text())
    assert named["meta"]["iter"] == resumed.iter


def test_a_run_from_scratch_with_resume(build, tmp_path):
    """Many a cluster always gives --resume."""
    work_dir = tmp_path / "work"
    work_dir.mkdir()
    (work_dir / "last_checkpoint").touch()  # of a process killed at once
    runner = build(
        "retinanet",
        iters=1,
        work_dir=work_dir,
        hooks=[rollback()],
        options=RESUME,
    )
    runner.train()
    assert runner.iter == 1
    assert "starts afresh" in helpers.log(runner)


def test_checkpoints_in_a_folder_of_their_own(build, tmp_path):
    """CheckpointHook(out_dir=...) with a name of its own; best_* cannot be resumed."""
    options = {
        "default_hooks.checkpoint.out_dir": str(tmp_path / "out"),
        "default_hooks.checkpoint.filename_tmpl": "ckpt_{:04d}.pth",
        "default_hooks.checkpoint.by_epoch": False,
    }
    work = dict(work_dir=tmp_path / "work", hooks=[rollback()])
    build("retinanet", iters=3, options=options, **work).train()
    saved = tmp_path / "out" / "work" / "ckpt_0003.pth"
    assert saved.exists()
    (tmp_path / "work" / "last_checkpoint").unlink()
    shutil.copy(saved, tmp_path / "work" / "best_coco_bbox_mAP_iter_9.pth")
    runner = build("retinanet", iters=3, options={**options, "resume": True}, **work)
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    assert choose_resume(runner) == str(saved)


# --- the order of candidates ------------------------------------------------------
def order(*candidates, named=None):
    """Names in order, from ``(name, iter, time)`` or with more."""
    found = [
        Candidate(f"/w/{name}", Header(i, f"{t:08d}", not no_optimizer), ours)
        for name, i, t, ours, no_optimizer in (
            (*c, *(False, False)[len(c) - 3 :]) for c in candidates
        )
    ]
    ordered = in_order(found, named and f"/w/{named}")
    return " ".join(c.path[3:] for c in ordered)


def test_most_iterations_first_and_ours_at_a_tie():
    files = [("a", 2, 2), ("b", 9, 9), ("ours", 9, 9, True), ("c", 5, 5, True)]
    assert order(*files) == "ours b c a"
    assert order(*files, named="a") == "ours b c a"
    assert order() == ""


def test_files_of_a_run_that_was_given_up_come_last():
    old = [("A8", 8, 18), ("A4", 4, 14), ("A1", 1, 11)]
    new = [("B0", 0, 20), ("B2", 2, 22), ("B3", 3, 23)]
    assert order(*old, *new, named="B3") == "B3 B2 B0 A8 A4 A1"
    assert order(*old, *new, named="B2") == "B3 B2 B0 A8 A4 A1"
    # Without the pointer, too.
    assert order(*old, *new) == "B3 B2 B0 A8 A4 A1"
    assert order(*old, *new, named="lost") == "B3 B2 B0 A8 A4 A1"


def test_a_start_by_mistake_does_not_give_up_a_run():
    """Somebody forgot --resume, and noticed."""
    old = [("A8", 8, 18), ("A4", 4, 14)]
    assert order(*old, ("B0", 0, 20), named="A8") == "A8 A4 B0"
    assert order(*old, ("B0", 0, 20)) == "A8 A4 B0"
    assert order(*old, ("B0", 0, 20), ("B2", 2, 22), named="A8") == "A8 A4 B2 B0"


def test_without_an_optimizer_state_only_if_there_is_nothing_else():
    files = [("bare", 9, 9, False, True), ("ours", 7, 7, True), ("c", 5, 5)]
    assert order(*files, named="bare") == "ours c bare"


def test_saved_in_the_same_second():
    assert order(("a", 2, 5), ("b", 3, 5), ("c", 4, 5), named="b") == "c b a"
