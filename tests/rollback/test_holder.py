"""How many copies of a run are in memory, and that each can be gone back to."""

import os
from pathlib import Path

import pytest
import torch

from amp_hooks.engine.tensors import named_tensors
from amp_hooks.rollback.host_memory import free_host_bytes
from amp_hooks.rollback.own_part import Part
from amp_hooks.rollback.run_state import Snapshot, learned_state
from tests import helpers, processes, small

GUARD = dict(type="amp_hooks.StepGuardHook")


def rollback(**more):
    return dict(
        type="amp_hooks.RollbackHook",
        **dict(dict(interval=5, probation=2, patience=1, lr_factor=1.0), **more),
    )


class Counting(small.Small):
    """A buffer that no state dict has, and which every forward pass writes."""

    def __init__(self):
        super().__init__()
        self.register_buffer("forwards", torch.zeros(3), persistent=False)

    def losses(self, features, logits, y):
        self.forwards += 1
        return super().losses(features, logits, y)


class Watch(small.Hook):
    """The state before each iteration, and what the ring holds."""

    priority = 1

    def __init__(self):
        self.states, self.items = {}, {}

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        hook = helpers.hook_of(runner, "RollbackHook")
        self.items[runner.iter] = {e.iter: e.item for e in hook._ring.entries}
        self.states[runner.iter] = everything(runner)


def everything(runner):
    state = learned_state(runner)
    state.pop("optimizer")
    momentum = [
        v for s in runner.optim_wrapper.optimizer.state.values() for v in s.values()
    ]
    tensors = dict(named_tensors([state, momentum]))
    return {name: t.detach().clone() for name, t in tensors.items()}


def settle(runner):
    """Files are written in the background: wait for each."""

    class Settle(small.Hook):
        priority = 99

        def after_train_iter(self, runner, *args, **kwargs):
            hook = helpers.hook_of(runner, "RollbackHook")
            hook._snapshots.collect(wait=60)

    return Settle()


@pytest.fixture
def scarce(monkeypatch):
    """From iteration 15 on there is no memory for more copies than there are."""
    runners = []

    def free():
        return 1000 if runners and runners[0].iter >= 15 else 2**40

    monkeypatch.setattr("amp_hooks.rollback.holder.free_host_bytes", free)
    return runners


@pytest.mark.parametrize("loop", [dict(iters=30), dict(epochs=1)], ids=str)
@pytest.mark.parametrize("ema", [False, True], ids=["", "ema"])
def test_where_memory_is_short_older_ones_are_files(tmp_path, scarce, loop, ema):
    watch = Watch()
    hooks = [GUARD, rollback(keep=4), *([dict(type="EMAHook")] if ema else [])]
    runner = small.build(tmp_path, hooks, model=Counting, **loop)
    scarce.append(runner)
    for hook in (watch, settle(runner)):
        runner.register_hook(hook)
    runner.train()
    items = watch.items[29]
    assert sorted(items) == [0, 15, 20, 25]
    # 20 was the newest when the last copy was made, and waits for the next.
    kinds = [type(items[i]) for i in (0, 15, 20, 25)]
    assert kinds == [Part, Part, Snapshot, Snapshot]
    held = [
        sum(isinstance(item, Snapshot) for item in at.values())
        for i, at in watch.items.items()
        if i > 20
    ]
    assert max(held) == 2


@pytest.mark.parametrize("dtype", [None, "float16"])
@pytest.mark.parametrize("ema", [False, True], ids=["", "ema"])
def test_a_file_is_gone_back_to_bit_for_bit(tmp_path, scarce, dtype, ema):
    """A second rollback soon after the first goes to an older snapshot."""
    bad = [26, 27]
    watch = Watch()
    hooks = [small.SpoilInputs(bad), rollback(keep=4, cooldown=10)]
    hooks += [dict(type="EMAHook")] if ema else []
    runner = small.build(tmp_path, hooks, model=Counting, dtype=dtype, iters=30)
    scarce.append(runner)
    for hook in (watch, settle(runner)):
        runner.register_hook(hook)
    runner.train()
    first, second = helpers.ledger(runner, "rollback")
    assert (first["target_iter"], second["target_iter"]) == (20, 15)
    assert isinstance(watch.items[26][15], Part)
    found, expected = watch.states[28], watch.states[15]
    assert found.keys() == expected.keys()
    differing = [n for n in found if not torch.equal(found[n], expected[n])]
    # The loss scale is lowered by each rollback; EMA counts on.
    assert [n for n in differing if "scale" not in n and "steps" not in n] == []


def test_a_file_that_was_deleted_leads_to_an_older_one(tmp_path, scarce):
    class Delete(small.Hook):
        priority = 2

        def before_train_iter(self, runner, batch_idx, data_batch=None):
            if runner.iter == 27:
                os.remove(Path(runner.work_dir, "rollback/iter_15.pth"))

    hooks = [small.SpoilInputs([26, 27]), rollback(keep=4, cooldown=10), Delete()]
    runner = small.build(tmp_path, hooks, iters=30)
    scarce.append(runner)
    runner.register_hook(settle(runner))
    runner.train()
    _, second = helpers.ledger(runner, "rollback")
    assert second["target_iter"] == 10
    assert runner.iter == 30


def test_if_no_older_one_can_be_read_there_is_the_newest(tmp_path, scarce):
    class Delete(small.Hook):
        priority = 2

        def before_train_iter(self, runner, batch_idx, data_batch=None):
            if runner.iter == 27:
                for path in Path(runner.work_dir, "rollback").glob("iter_*.pth"):
                    path.unlink()

    hooks = [small.SpoilInputs([26, 27]), rollback(cooldown=10), Delete()]
    runner = small.build(tmp_path, hooks, iters=30)
    scarce.append(runner)
    runner.register_hook(settle(runner))
    runner.train()
    targets = [line["target_iter"] for line in helpers.ledger(runner, "rollback")]
    assert targets == [20, 20]
    assert runner.iter == 30
    assert all(t.isfinite().all() for t in small.state(runner).values())


def test_a_checkpoint_that_a_hook_has_edited_stands_for_nothing(tmp_path, scarce):
    class Halve(small.Hook):
        def before_save_checkpoint(self, runner, checkpoint):
            weights = checkpoint["state_dict"]
            for name in weights:
                weights[name] = weights[name] / 2

    watch = Watch()
    hooks = [small.SpoilInputs([26, 27]), rollback(keep=4, cooldown=10), Halve()]
    runner = small.build(tmp_path, hooks, model=Counting, iters=30)
    scarce.append(runner)
    for hook in (watch, settle(runner)):
        runner.register_hook(hook)
    runner.train()
    target = helpers.ledger(runner, "rollback")[-1]["target_iter"]
    found, expected = watch.states[28], watch.states[target]
    assert [n for n in found if not torch.equal(found[n], expected[n])] == []


def test_without_memory_there_is_no_snapshot_and_training_goes_on(
    tmp_path, monkeypatch
):
    told = []
    monkeypatch.setattr("amp_hooks.rollback.holder.free_host_bytes", lambda: 1000)
    monkeypatch.setattr("amp_hooks.rollback.snapshot_store.warn", told.append)
    runner = small.build(tmp_path, [GUARD, rollback()], iters=12)
    runner.train()
    assert runner.iter == 12
    assert any("MiB of host memory" in text and "iteration 0" in text for text in told)
    stock = small.build(tmp_path, iters=12)
    stock.train()
    assert small.same(small.state(runner), small.state(stock))


def files(root, **texts):
    for name, text in texts.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(root)


MEMINFO = "MemTotal: 100 kB\nMemAvailable:   50 kB\n"


def test_free_memory_is_the_machines_or_the_containers(tmp_path):
    assert free_host_bytes(str(tmp_path)) is None
    root = files(tmp_path, proc__meminfo=MEMINFO)
    assert free_host_bytes(root) == 50 * 1024
    stat = "anon 5\ninactive_file 300\nactive_file 7\n"
    v2 = {"sys__fs__cgroup__memory.max": "10000\n"}
    v2.update({"sys__fs__cgroup__memory.current": "9000\n"})
    v2.update({"sys__fs__cgroup__memory.stat": stat})
    files(tmp_path, **v2)
    assert free_host_bytes(root) == 1300
    files(tmp_path, **{"sys__fs__cgroup__memory.max": "max\n"})
    assert free_host_bytes(root) == 50 * 1024
    v1 = {"sys__fs__cgroup__memory__memory.limit_in_bytes": "4000\n"}
    v1.update({"sys__fs__cgroup__memory__memory.usage_in_bytes": "3500\n"})
    v1.update({"sys__fs__cgroup__memory__memory.stat": "total_inactive_file 100\n"})
    files(tmp_path, **v1)
    assert free_host_bytes(root) == 600


def test_this_machine_says_how_much_is_free():
    assert free_host_bytes() > 2**20


@pytest.mark.slow
def test_two_ranks_hold_one_copy_and_go_back_to_it_alike(tmp_path):
    """A model of 100 MB; the ranks' BatchNorm statistics are their own."""
    program = Path(__file__).with_name("two_ranks_program.py")
    processes.two_ranks(program, tmp_path)
    ranks = [torch.load(tmp_path / f"rank{i}.pth") for i in (0, 1)]
    whole = ranks[0]["state_bytes"]
    assert whole > 100e6
    # Of iteration 0, when there was no momentum, of 5 and of 10.
    assert ranks[0]["held"] == pytest.approx(2.5 * whole, rel=0.01)
    assert ranks[1]["held"] < 0.01 * whole
    # Resident memory: what the other rank saves is these, less what varies.
    assert ranks[0]["rss"] - ranks[1]["rss"] > 1.5 * whole
    assert ranks[0]["rollbacks"] == [[12, 5]]
    assert [rank["differing"] for rank in ranks] == [[], []]
    ours, theirs = (rank["bn"] for rank in ranks)
    assert not torch.equal(ours, theirs)
