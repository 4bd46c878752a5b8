"""A resume in the middle of an epoch goes on there, with the batches that are left."""

import contextlib

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from amp_hooks.rollback.epoch_position import RestOfEpoch
from tests import helpers, processes, small
from tests.rollback import preempted
from tests.rollback.preempted import EPOCHS, LENGTH, Batches, go, run_in_pieces


def test_only_the_first_pass_leaves_something_out():
    own = BatchSampler(SequentialSampler(range(7)), 2, drop_last=False)
    sampler = RestOfEpoch(own, 3)
    assert (len(sampler), sampler.batch_size) == (4, 2)
    assert list(sampler) == [[6]]
    assert list(sampler) == list(own)
    assert list(RestOfEpoch(own, 4)) == list(RestOfEpoch(own, 9)) == []


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nobody disturbs: its samples by iteration, and what it learned."""
    return go(tmp_path_factory.mktemp("whole"), resume=False)


@pytest.mark.parametrize("workers", [0, 2])
def test_preempted_in_each_of_four_epochs(tmp_path, whole, workers):
    pieces, runner = run_in_pieces(tmp_path, workers=workers)
    assert runner.iter == EPOCHS * LENGTH == 96
    assert small.same(small.state(runner), small.state(whole.runner))
    for piece in pieces:
        for at, (number, samples) in piece.seen.items():
            assert (number, samples) == whole.seen[at], at
    # Not one sample was read for those that had been trained on.
    assert pieces[-1].begins % LENGTH
    if not workers:
        assert pieces[-1].read == (96 - pieces[-1].begins) * 8


def test_without_a_seed_in_the_config(tmp_path):
    """Each process draws one of its own; the order is that of the first."""
    pieces, _ = run_in_pieces(tmp_path, seed=None)
    per_epoch = {}
    for piece in pieces:
        for at, (_, samples) in piece.seen.items():
            known = per_epoch.setdefault(at // LENGTH, {}).setdefault(at, samples)
            assert known == samples
    for batches in per_epoch.values():
        assert sorted(sum(batches.values(), [])) == list(range(8 * LENGTH))


def test_the_last_batch_of_an_epoch_had_been_done(tmp_path, whole):
    """Saved after it, killed before the epoch ended: nothing of it is repeated."""
    first = go(
        tmp_path, resume=False, kill=(1, LENGTH), checkpoint=dict(interval=2 * LENGTH)
    )
    assert first.runner.iter == 2 * LENGTH
    again = go(tmp_path, resume=True)
    assert again.begins == 2 * LENGTH
    assert again.runner.iter == 96
    assert small.same(small.state(again.runner), small.state(whole.runner))


def test_the_file_is_of_a_run_without_us(tmp_path, whole):
    go(tmp_path, resume=False, kill=(1, 9), checkpoint=dict(interval=8), ours=False)
    again = go(tmp_path, resume=True)
    assert again.begins == LENGTH + 8
    assert small.same(small.state(again.runner), small.state(whole.runner))


def test_a_file_of_anothers_epoch_end_with_other_batches_leaves_nothing_out(tmp_path):
    """32 iterations were one epoch then, and are two now."""
    go(
        tmp_path,
        resume=False,
        kill=(1, 1),
        checkpoint=dict(interval=1, by_epoch=True),
        ours=False,
        batch_size=4,
    )
    again = go(tmp_path, resume=True)
    assert again.begins == 2 * LENGTH
    assert again.runner.epoch == EPOCHS
    assert again.seen[again.begins][0] == 0
    assert len(again.seen) == (EPOCHS - 1) * LENGTH


def test_batches_that_are_grouped_as_indices_are_read(tmp_path):
    grouped = dict(type="ByParity", force=True)
    undisturbed = go(tmp_path / "a", resume=False, batch_sampler=grouped)
    pieces, runner = run_in_pieces(tmp_path / "b", batch_sampler=grouped)
    assert small.same(small.state(runner), small.state(undisturbed.runner))
    for piece in pieces:
        for at, seen in piece.seen.items():
            assert seen == undisturbed.seen[at]


def test_another_number_of_batches_is_told_and_the_epoch_repeated(tmp_path):
    go(tmp_path, resume=False, kill=(1, 9))
    again = go(tmp_path, resume=True, batch_size=4)
    assert again.log.count("is repeated from its beginning") == 1
    assert "an epoch had 16 batches, and has 32 now" in again.log
    assert again.runner.epoch == EPOCHS
    assert again.seen[again.begins][0] == 0


class OwnWay(EpochBasedTrainLoop):
    def run_epoch(self):
        super().run_epoch()


def test_a_loop_of_its_own_way_is_left_alone(tmp_path):
    go(tmp_path, resume=False, kill=(1, 9), loop=OwnWay)
    again = go(tmp_path, resume=True, loop=OwnWay)
    assert "OwnWay goes through an epoch in its own way" in again.log
    assert again.runner.iter > 96


def test_an_order_that_nobody_can_repeat_is_told(tmp_path):
    sampler = dict(sampler=dict(type="TorchRandom", force=True))
    go(tmp_path, resume=False, kill=(1, 9), **sampler)
    again = go(tmp_path, resume=True, **sampler)
    assert "in another order: RandomSampler" in again.log
    assert again.runner.iter == 96


def test_nothing_is_left_of_it_in_loop_and_loader(tmp_path, whole):
    go(tmp_path, resume=False, kill=(1, 9))
    loop = go(tmp_path, resume=True).runner.train_loop
    assert not {"run_epoch", "run_iter"} & set(vars(loop))
    assert type(loop.dataloader) is DataLoader
    assert type(loop.dataloader.batch_sampler) is BatchSampler


class Log(Hook):
    def __init__(self):
        self.batches = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        names = [sample.img_path for sample in data_batch["data_samples"]]
        self.batches.append((runner.iter, batch_idx, names))


@pytest.mark.long
def test_a_detector_with_batches_by_aspect_ratio(build, tmp_path):
    """12 iterations an epoch, killed at 20; with mmdet's AspectRatioBatchSampler."""
    hooks = [dict(type="amp_hooks.RollbackHook", interval=4, probation=1)]
    options = {
        "train_dataloader.batch_sampler": dict(type="AspectRatioBatchSampler"),
        "randomness": dict(seed=3),
    }

    def run(work_dir, kill=None, **more):
        runner = build(
            "retinanet",
            epochs=2,
            hooks=hooks,
            work_dir=work_dir,
            precision="float32",
            options=dict(options, **more),
        )
        log = Log()
        runner.register_hook(log)
        runner.register_hook(preempted.Kill(kill))
        with contextlib.suppress(preempted.Killed):
            runner.train()
        return runner, log.batches

    _, undisturbed = run(tmp_path / "whole")
    run(tmp_path / "killed", kill=(1, 8))
    runner, rest = run(tmp_path / "killed", resume=True)
    assert runner.iter == 24
    assert 12 < rest[0][0] <= 20
    assert rest == undisturbed[rest[0][0] :]
    assert helpers.ledger(runner, "resume")


def test_two_ranks(tmp_path):
    program = ["-m", "tests.rollback.preempted"]
    processes.two_ranks(*program, tmp_path / "whole", "whole", cwd=helpers.ROOT)
    for epoch in ("1", "2", "3", "4"):
        processes.two_ranks(
            *program, tmp_path / "killed", epoch, cwd=helpers.ROOT, status=1
        )
    processes.two_ranks(*program, tmp_path / "killed", "whole", cwd=helpers.ROOT)
    ends = [torch.load(tmp_path / d / "end.pth") for d in ("whole", "killed")]
    assert ends[1]["begins"] > 0
    assert ends[0]["iter"] == ends[1]["iter"] == EPOCHS * LENGTH // 2
    assert small.same(ends[0]["state"], ends[1]["state"])


def test_another_number_of_ranks_is_told(tmp_path):
    program = ["-m", "tests.rollback.preempted"]
    processes.two_ranks(*program, tmp_path, "1", cwd=helpers.ROOT, status=1)
    again = go(tmp_path, resume=True)
    assert "a run on 2 ranks, and this one has 1" in again.log
    assert "sees 0.5 times the samples" in again.log
    assert isinstance(again, Batches)
