"""What was logged is not copied into snapshots, and is in their files all the same."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import MessageHub

from amp_hooks.rollback.log_history import hub_state, replace_latest
from tests import small


def hub_of(name, entries):
    hub = MessageHub.get_instance(name)
    for i in range(entries):
        hub.update_scalar("train/loss", float(i))
    hub.update_scalar("train/not_resumed", 1.0, resumed=False)
    hub.update_info("dataset_meta", dict(classes=["cat"]))
    return hub


def test_it_is_what_mmengine_gives(request):
    hub = hub_of(request.node.name, 5)
    theirs, ours = hub.state_dict(), hub_state(hub)
    assert list(ours) == list(theirs)
    assert list(ours["log_scalars"]) == list(theirs["log_scalars"]) == ["train/loss"]
    assert ours["runtime_info"] == theirs["runtime_info"]
    for mine, other in zip(
        ours["log_scalars"]["train/loss"].data, theirs["log_scalars"]["train/loss"].data
    ):
        assert np.array_equal(mine, other)
    again = MessageHub.get_instance(request.node.name + "again")
    again.load_state_dict(ours)
    assert again.get_scalar("train/loss").mean() == 2.0


def test_no_history_is_copied_and_none_changes(request):
    hub = hub_of(request.node.name, 5)
    values, counts = hub.get_scalar("train/loss").data
    kept = hub_state(hub)["log_scalars"]["train/loss"]
    assert np.shares_memory(kept.data[0], values)
    assert np.shares_memory(kept.data[1], counts)
    replace_latest(hub, "train/loss", 9.0)
    hub.update_scalar("train/loss", 7.0)
    assert kept.data[0].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert hub.get_scalar("train/loss").data[0].tolist() == [0, 1, 2, 3, 9, 7]
    replace_latest(hub, "train/nothing", 1.0)
    assert "train/nothing" not in hub.log_scalars


class ReadFiles(small.Hook):
    """Reads every file as soon as it is there."""

    priority = "LOWEST"

    def __init__(self):
        self.histories = {}

    def after_train(self, runner):
        self.after_train_iter(runner)  # on a busy machine it is not there before

    def after_train_iter(self, runner, *args, **kwargs):
        for path in Path(runner.work_dir, "rollback").glob("iter_*.pth"):
            iteration = int(path.stem.split("_")[1])
            if iteration and iteration not in self.histories:
                hub = torch.load(path, weights_only=False)["message_hub"]
                history = hub["log_scalars"]["train/loss"]
                self.histories[iteration] = history.data[0]


@pytest.mark.parametrize("length", [dict(iters=30), dict(epochs=3)])
def test_the_files_hold_what_was_logged_until_then(tmp_path, length):
    hook = dict(type="amp_hooks.RollbackHook", interval=10, probation=3, keep=5)
    bad = small.SpoilInputs(at=range(15, 19))
    guard = dict(type="amp_hooks.StepGuardHook")
    read = ReadFiles()
    runner = small.build(tmp_path, hooks=[guard, hook, bad, read], **length)
    runner.train()
    logged = runner.message_hub.get_scalar("train/loss").data[0]
    assert read.histories
    for iteration, history in read.histories.items():
        assert np.array_equal(history, logged[:iteration], equal_nan=True)
