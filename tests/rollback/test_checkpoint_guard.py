"""CheckpointHook writes good checkpoints only, and none is lost to a bad one."""

import math
import os
import pathlib
import re
import resource
from pathlib import Path

import pytest
import torch
from mmengine.hooks import CheckpointHook, Hook

from amp_hooks.engine.safe_read import read_safely
from amp_hooks.engine.tensors import named_tensors
from amp_hooks.rollback.checkpoint_file import damage
from amp_hooks.rollback.checkpoint_guard import CheckpointGuard
from amp_hooks.rollback.disk import Pointer
from amp_hooks.rollback.run_state import nonfinite_state
from tests import helpers
from tests.integration.test_ddp import train_on_two_ranks

BN = "backbone.bn1.running_mean"
LOOPS = {"iter": dict(iters=6), "epoch": dict(epochs=3)}
FEW = {"train_dataloader.dataset.indices": 8}  # images: 4 iterations an epoch


class Guarded(Hook):
    """Attaches the guard, and lets things happen between iterations.

    Args:
        events: ``{iterations: function of the runner}``.
        prompt: ``last_checkpoint`` is moved at once; otherwise by nobody.
    """

    priority = 40

    def __init__(self, events=None, prompt=True):
        self.events, self.prompt, self.saved = events or {}, prompt, []

    def before_train(self, runner):
        self.pointer = Pointer(runner.work_dir)
        self.guard = CheckpointGuard(
            runner, lambda: nonfinite_state(runner, frozenset()), self.on_saved
        )
        self.guard.attach()

    def on_saved(self, path, iteration):
        assert damage(path) is None
        self.saved.append((os.path.basename(path), iteration))
        if self.prompt:
            self.pointer.offer(path, iteration)

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.events.get(runner.iter, lambda _: None)(runner)

    def after_train(self, runner):
        self.guard.detach()


def guarded(build, loop="iter", events=None, prompt=True, **checkpoint):
    """A run of 6 that saves every 2 iterations, or of 3 that saves every epoch."""
    saves = dict(max_keep_ckpts=1, interval=2 if loop == "iter" else 1)
    checkpoint = {**saves, **checkpoint}
    runner = build(
        "retinanet",
        options={
            **{f"default_hooks.checkpoint.{k}": v for k, v in checkpoint.items()},
            "log_level": "WARNING",
            **FEW,
        },
        ema=False,
        **LOOPS[loop],
    )
    hook = Guarded(events, prompt)
    runner.register_hook(hook)
    return runner, hook


def checkpoints(folder):
    return sorted(name for name in os.listdir(folder) if ".pth" in name)


def hub(runner, key):
    return runner.message_hub.runtime_info.get(key)


def poison(runner):
    runner.model.get_buffer(BN)[0] = math.inf


def cure(runner):
    runner.model.get_buffer(BN)[0] = 0.0


def validate(runner, metrics):
    for hook in runner.hooks:
        if isinstance(hook, CheckpointHook):
            hook.after_val_epoch(runner, metrics)


def score(value):
    return lambda runner: validate(runner, dict(acc=value))


def do(*events):
    def happen(runner):
        for event in events:
            event(runner)

    return happen


def nest(runner):
    """What pickle cannot write."""
    nested = []
    for _ in range(100_000):
        nested = [nested]
    runner.message_hub.update_info("nested", nested)


def unnest(runner):
    nested = runner.message_hub.runtime_info.pop("nested")
    while nested:  # or Python's own end of it would be too deep
        nested = nested.pop()


def limit_files(size):
    """No file can grow beyond it: what has been written before stays, as on a disk."""

    def limit(runner):
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (size or hard, hard))

    return limit


@pytest.fixture(autouse=True)
def _no_limit():
    yield
    limit_files(None)(None)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("kind", ["not finite", "disk full", "too deep"])
def test_a_checkpoint_that_is_not_written(build, loop, kind):
    """The second of three: the first stays until the third is there."""
    bad, good = {
        "not finite": (poison, cure),
        "disk full": (limit_files(100_000), limit_files(None)),
        "too deep": (nest, unnest),
    }[kind]
    words = {
        "not finite": BN,
        "disk full": "File too large",
        "too deep": "something in it is nested too deep",
    }[kind]
    seen = {}

    def look(runner):
        seen["files"] = checkpoints(runner.work_dir)
        seen["keep"], seen["last"] = (
            hub(runner, "keep_ckpt_ids"),
            hub(runner, "last_ckpt"),
        )
        seen["named"] = Pointer(runner.work_dir).named
        good(runner)

    at = (3, 4) if loop == "iter" else (6, 8)
    runner, hook = guarded(build, loop, {at[0]: bad, at[1]: look})
    runner.train()
    first, second, third = (
        ("iter_2.pth", "iter_4.pth", "iter_6.pth")
        if loop == "iter"
        else ("epoch_1.pth", "epoch_2.pth", "epoch_3.pth")
    )
    path = os.path.join(runner.work_dir, first)
    ids = [2, 6] if loop == "iter" else [1, 3]
    assert seen == dict(files=[first], keep=ids[:1], last=path, named=path)
    log = helpers.log(runner)
    assert f":\n{runner.work_dir}/{second}\nNone was removed" in log
    assert words in log
    assert log.count("no checkpoint was written") == 1
    # And then all is as ever.
    assert checkpoints(runner.work_dir) == [third]
    assert hub(runner, "keep_ckpt_ids") == ids[1:]
    assert [name for name, _ in hook.saved] == [first, third]
    assert hook.saved[-1][1] == runner.iter
    saved = read_safely(Path(runner.work_dir, third))
    info = saved["message_hub"]["runtime_info"]
    assert info["keep_ckpt_ids"] == ids[1:]
    assert (
        info["last_ckpt"] == hook.pointer.named == os.path.join(runner.work_dir, third)
    )


def test_a_best_checkpoint_that_is_not_written(build):
    seen = {}

    def look(runner):
        seen["files"] = checkpoints(runner.work_dir)
        seen["best"] = hub(runner, "best_score"), hub(runner, "best_ckpt")

    events = {
        1: score(0.5),
        3: do(poison, score(0.9), look, cure),
        5: do(score(0.7), score(0.8)),  # the same file again
    }
    runner, hook = guarded(
        build, events=events, save_best="acc", rule="greater", interval=100
    )
    runner.train()
    best = os.path.join(runner.work_dir, "best_acc_iter_1.pth")
    assert seen == dict(files=["best_acc_iter_1.pth"], best=(0.5, best))
    assert "best_acc_iter_3.pth\nNone was removed" in helpers.log(runner)
    # Its score was not taken for the best one, so that 0.7 is.
    assert checkpoints(runner.work_dir) == ["best_acc_iter_5.pth", "iter_6.pth"]
    assert hub(runner, "best_score") == 0.8
    saved = read_safely(Path(runner.work_dir, "best_acc_iter_5.pth"))
    assert "optimizer" not in saved
    assert saved["message_hub"]["runtime_info"]["best_score"] == 0.8
    assert hook.saved == [("iter_6.pth", 6)]  # a run cannot go on from best_*


def test_several_best_ones_of_which_none_is_good(build):
    def scores(runner):
        validate(runner, dict(a=1.0, b=2.0))

    runner, _ = guarded(
        build,
        events={1: do(poison, scores, cure)},
        save_best=["a", "b"],
        rule="greater",
        published_keys=["meta", "state_dict"],
    )
    runner.train()
    names = checkpoints(runner.work_dir)
    assert [name[:7] for name in names] == ["iter_6-", "iter_6."]  # one is published


def test_the_one_that_is_pointed_to_is_not_rotated_away(build):
    """Newer ones are on probation: nobody has moved the pointer yet."""
    seen = []

    def point(runner):
        Pointer(runner.work_dir).offer(os.path.join(runner.work_dir, "iter_2.pth"), 2)

    events = {
        2: point,
        4: lambda runner: seen.append(checkpoints(runner.work_dir)),
        5: lambda runner: seen.append(checkpoints(runner.work_dir)),
    }
    runner, hook = guarded(build, events=events, prompt=False, interval=1)
    runner.train()
    assert seen == [["iter_2.pth", "iter_4.pth"], ["iter_2.pth", "iter_5.pth"]]
    assert checkpoints(runner.work_dir) == ["iter_2.pth", "iter_6.pth"]
    assert Pointer(runner.work_dir).named.endswith("iter_2.pth")
    assert len(hook.saved) == 6
    hook.pointer.offer(os.path.join(runner.work_dir, "iter_6.pth"), 6)
    hook.guard.settle()
    assert checkpoints(runner.work_dir) == ["iter_6.pth"]


def test_the_hook_does_not_move_the_pointer_and_gets_itself_back(build):
    runner, hook = guarded(build, prompt=False)
    # And what a process that was killed was writing is removed.
    Path(runner.work_dir, ".iter_4.pth.amp_hooks.tmp").touch()
    runner.train()
    assert checkpoints(runner.work_dir) == ["iter_6.pth"]
    assert hook.saved == [("iter_2.pth", 2), ("iter_4.pth", 4), ("iter_6.pth", 6)]
    assert not Path(runner.work_dir, "last_checkpoint").exists()
    (checkpoint,) = [h for h in runner.hooks if isinstance(h, CheckpointHook)]
    assert not [name for name in vars(checkpoint) if name.startswith("_save")]
    assert type(checkpoint.file_backend).__name__ == "LocalBackend"


def test_the_files_hold_what_they_would_hold_anyway(build, tmp_path):
    a, _ = guarded(build, max_keep_ckpts=2)
    a.train()
    torch.manual_seed(0)
    b, hook = guarded(build, max_keep_ckpts=2)
    b._hooks.remove(hook)
    b.train()
    assert checkpoints(a.work_dir) == checkpoints(b.work_dir)
    first, second = (read_safely(Path(r.work_dir, "iter_6.pth")) for r in (a, b))
    assert list(first) == list(second)
    assert list(first["meta"]) == list(second["meta"])
    assert first["param_schedulers"] == second["param_schedulers"]
    for key in ("state_dict", "optimizer"):
        ours, theirs = (dict(named_tensors(c[key])) for c in (first, second))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    infos = [c["message_hub"]["runtime_info"] for c in (first, second)]
    assert infos[0].keys() == infos[1].keys()
    assert infos[0]["keep_ckpt_ids"] == infos[1]["keep_ckpt_ids"] == [4, 6]


def test_a_file_that_the_disk_has_changed(build):
    def careless_disk(runner):
        save = runner.save_checkpoint

        def save_and_flip(out_dir, filename, *args, **kwargs):
            save(out_dir, filename, *args, **kwargs)
            path = Path(out_dir, filename)
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(content)

        runner.save_checkpoint = save_and_flip

    def mended(runner):
        del runner.save_checkpoint

    runner, hook = guarded(build, events={3: careless_disk, 4: mended})
    runner.train()
    assert hook.saved == [("iter_2.pth", 2), ("iter_6.pth", 6)]
    told = "no checkpoint was written, for it is damaged: the checksum"
    assert re.search(rf"{told}[^\n]*:\n\S*/iter_4\.pth\n", helpers.log(runner))
    assert checkpoints(runner.work_dir) == ["iter_6.pth"]


def test_a_subclass_with_foreign_things_in_a_folder_of_its_own(build, tmp_path):
    """Such a file is the user's: it is kept, but no run can be resumed from it."""

    class Own(CheckpointHook):
        def before_save_checkpoint(self, runner, checkpoint):
            checkpoint["where"] = pathlib.PurePosixPath("/")

    runner, hook = guarded(build, interval=100, save_last=False)
    runner.register_hook(
        Own(interval=3, by_epoch=False, out_dir=str(tmp_path / "o"), max_keep_ckpts=1)
    )
    runner.train()
    assert checkpoints(tmp_path / "o" / os.path.basename(runner.work_dir)) == [
        "iter_6.pth"
    ]
    assert hook.saved == []
    told = "it cannot be resumed from, for torch's weights_only"
    assert re.search(rf"{told}[^\n]*:\n\S*/iter_3\.pth\n", helpers.log(runner))


def test_without_an_optimizer_a_run_does_not_point_to_it(build):
    runner, hook = guarded(build, save_optimizer=False)
    runner.train()
    assert checkpoints(runner.work_dir) == ["iter_6.pth"]
    assert hook.saved == []


@pytest.mark.parametrize("loop", LOOPS)
def test_with_the_rollback_hook(build, loop):
    """A poisoned buffer that no loss has shown."""
    last = 5 if loop == "iter" else 7
    runner = build(
        "retinanet",
        hooks=[
            helpers.fault("buffer", last, where=BN),
            dict(type="amp_hooks.RollbackHook", interval=3),
        ],
        options={
            "default_hooks.checkpoint.interval": 2 if loop == "iter" else 1,
            "default_hooks.checkpoint.max_keep_ckpts": 1,
            "log_level": "WARNING",
            **FEW,
        },
        **(dict(iters=6) if loop == "iter" else dict(epochs=2)),
    )
    runner.train()
    kept = "iter_4.pth" if loop == "iter" else "epoch_1.pth"
    assert checkpoints(runner.work_dir) == [kept]
    named = Path(Pointer(runner.work_dir).named)
    assert damage(str(named)) is None
    assert "no checkpoint was written, for the state is not finite" in helpers.log(
        runner
    )


def test_two_ranks(digits, tmp_path):
    """A disk that fails on rank 0, a buffer on rank 1: nobody waits for ever."""
    hooks = [
        helpers.fault("disk", 1, rank=0),
        helpers.fault("buffer", 5, where=BN, rank=1),
        dict(type="amp_hooks.RollbackHook", interval=100),
    ]
    checkpoint = {"default_hooks.checkpoint.interval": 2}
    a, b = train_on_two_ranks(
        digits, tmp_path / "w", iters=6, hooks=hooks, options=checkpoint, ema=False
    )
    assert a["iter"] == b["iter"] == 6
    assert checkpoints(tmp_path / "w") == ["iter_4.pth"]
