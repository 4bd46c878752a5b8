import math
import os
import re
import time
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import OPTIMIZERS

from amp_hooks import TrainingDivergedError
from amp_hooks.engine.safe_read import read_safely
from amp_hooks.engine.tensors import nonfinite_names
from amp_hooks.rollback.checkpoint_file import damage
from amp_hooks.rollback.holder import Holder
from amp_hooks.rollback.run_state import Snapshot
from tests import helpers, processes

LOOPS = [dict(iters=8), dict(epochs=1)]  # 24 images, 2 a batch: 12 iterations
BN = "backbone.bn1.running_mean"
CLS = "bbox_head.retina_cls.weight"


def rollback(**kwargs):
    options = {"interval": 3, "probation": 0, "warmup_iters": 0, **kwargs}
    return dict(type="amp_hooks.RollbackHook", **options)


def pointer_of(runner):
    return (Path(runner.work_dir) / "last_checkpoint").read_text()


def nan_weight(at, **more):
    return helpers.fault("parameter", at, where=CLS, **more)


@pytest.mark.parametrize("loop", LOOPS, ids=["iter", "epoch"])
def test_natural_overflow_is_survived(build, loop):
    """The hot config: FP16 overflows by itself, without an injected fault."""
    # Without a clamp, which would bound the logits and keep the losses finite.
    hooks = [rollback(interval=1000, lr_factor=0.01), *helpers.SUITE[:3]]
    # At 0.3 not on every processor.
    options = {"optim_wrapper.optimizer.lr": 1.0}
    loop = dict(iters=20) if "iters" in loop else dict(epochs=2)
    stock = build("faster_rcnn_hot", **loop, options=options)
    stock.train()
    assert not math.isfinite(helpers.losses(stock)[-1])

    runner = build("faster_rcnn_hot", **loop, options=options, hooks=hooks)
    runner.train()
    assert math.isfinite(helpers.losses(runner)[-1])
    assert nonfinite_names(helpers.state(runner)) == []
    events = helpers.ledger(runner, "rollback")
    assert [e["verdict"] for e in events] == ["FORWARD_NONFINITE"] * len(events)
    assert 1 <= len(events) <= 3
    assert events[0]["target_iter"] == 0


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("loop", LOOPS, ids=["iter", "epoch"])
def test_poisoned_batchnorm_goes_back_at_once(build, loop, precision):
    """One infinite batch leaves BatchNorm infinite for ever (pytorch#90342)."""
    fault = helpers.infinite_images(5)
    stock = build("retinanet", **loop, precision=precision, hooks=[fault])
    stock.train()
    assert f"model.{BN}" in nonfinite_names(helpers.state(stock), limit=10**6)

    runner = build("retinanet", **loop, precision=precision, hooks=[fault, rollback()])
    runner.train()
    assert nonfinite_names(helpers.state(runner)) == []
    (event,) = helpers.ledger(runner, "rollback")
    assert (event["iter"], event["target_iter"]) == (5, 3)
    assert event["verdict"] == "STATE_NONFINITE"
    assert any(BN.rsplit(".", 1)[0] in name for name in event["nonfinite_state"])
    # The position in the run went on: no batch was replayed, no iteration lost.
    assert runner.iter == (8 if "iters" in loop else 12)


def test_restores_bit_for_bit_and_lowers_scale_and_lr(build, monkeypatch):
    seen = {}
    take, restore = Holder.take, Snapshot.restore

    def spy_take(holder, *args):
        seen[runner.iter] = helpers.state(runner)
        return take(holder, *args)

    def spy_restore(snapshot, runner, *args):
        lr_before = [g["lr"] for g in runner.optim_wrapper.param_groups]
        restore(snapshot, runner, *args)
        now = helpers.state(runner)
        assert now.keys() == seen[snapshot.iter].keys()
        assert all(torch.equal(v, seen[snapshot.iter][k]) for k, v in now.items())
        assert [g["lr"] for g in runner.optim_wrapper.param_groups] == lr_before
        assert all(p.grad is None for p in runner.model.parameters())
        seen["restored"] = snapshot.iter

    monkeypatch.setattr(Holder, "take", spy_take)
    monkeypatch.setattr(Snapshot, "restore", spy_restore)
    runner = build(
        "retinanet",
        iters=6,
        hooks=[
            nan_weight(5),
            rollback(scale_factor=0.25, lr_factor=0.5),
        ],
        options={"optim_wrapper.loss_scale": dict(init_scale=256.0, _delete_=True)},
    )
    runner.train()
    assert seen["restored"] == 3
    (event,) = helpers.ledger(runner, "rollback")
    assert event["scale"] == 64.0
    assert event["lr_factor"] == 0.5
    # The cosine schedule goes on at half its height.
    undisturbed = build("retinanet", iters=6)
    undisturbed.train()
    lr, expected = (r.optim_wrapper.get_lr()["lr"][0] for r in (runner, undisturbed))
    assert lr == pytest.approx(0.5 * expected, rel=1e-12)


def test_a_static_loss_scale_is_lowered_too(build):
    runner = build(
        "retinanet",
        iters=7,
        hooks=[nan_weight(4), rollback()],
        options={"optim_wrapper.loss_scale": 128.0},
    )
    runner.train()
    assert runner.optim_wrapper.loss_scaler.get_scale() == 64.0


def test_patience_counts_bad_iterations_in_a_row(build):
    """Infinite losses that leave the state finite: nothing to mend, only to count."""
    hooks = [
        # Logits beyond FP16 from here on.
        helpers.fault("parameter", 3, where=CLS, value="x1e6"),
        rollback(interval=100, patience=3),
    ]
    runner = build("retinanet", iters=9, hooks=hooks, ema=False)
    runner.train()
    (event,) = helpers.ledger(runner, "rollback")
    assert (event["iter"], event["target_iter"]) == (5, 0)
    assert event["verdict"] == "FORWARD_NONFINITE"
    assert event["nonfinite_state"] == []


def test_an_ordinary_overflow_is_not_bad(build):
    runner = build(
        "retinanet",
        iters=8,
        hooks=[rollback(patience=1)],
        options={"optim_wrapper.loss_scale": dict(init_scale=2.0**60, _delete_=True)},
    )
    runner.train()
    verdicts = {e["verdict"] for e in helpers.ledger(runner, "overflow")}
    assert verdicts == {"SCALE_OVERFLOW"}
    assert len(helpers.ledger(runner, "overflow")) == 8  # every single iteration
    assert helpers.ledger(runner, "rollback") == []


def test_a_snapshot_that_failed_gives_way_to_an_older_one(build):
    hooks = [nan_weight(4, iters=2), rollback(interval=3)]
    runner = build("retinanet", iters=8, hooks=hooks)
    runner.train()
    targets = [e["target_iter"] for e in helpers.ledger(runner, "rollback")]
    assert targets == [3, 0]


def test_a_hopeless_run_ends_and_says_what_to_use(build):
    hooks = [
        nan_weight(2, iters=98),
        rollback(max_rollbacks=2),
        dict(type="amp_hooks.StabilityPanelHook", interval=100),
    ]
    runner = build("retinanet", iters=50, hooks=hooks)
    with pytest.raises(TrainingDivergedError) as info:
        runner.train()
    message = str(info.value)
    pointer = pointer_of(runner)
    for part in (
        "iteration 4",
        "STATE_NONFINITE",
        "2 rollbacks, at 2 to 0 (STATE_NONFINITE); at 3 to 0 (STATE_NONFINITE)",
        "x0.01",
        "max_rollbacks=2 allows no more",
        pointer,
    ):
        assert part in message
    (abort,) = helpers.ledger(runner, "abort")
    assert abort["checkpoint"] == pointer
    checkpoint = read_safely(pointer)
    assert nonfinite_names(checkpoint["state_dict"]) == []


def test_a_model_that_is_not_finite_from_the_start(build):
    runner = build("retinanet", iters=3, hooks=[rollback()])

    class Poison(Hook):
        def before_train(self, runner):
            torch.nn.init.constant_(runner.model.get_parameter(CLS), math.nan)

    runner.register_hook(Poison())
    with pytest.raises(TrainingDivergedError, match="before the first iteration"):
        runner.train()


class Unborn(Hook):
    """Memory that was not initialised, in the copy that EMAHook made too early."""

    def before_run(self, runner):
        ema = helpers.hook_of(runner, "EMAHook").ema_model.module
        ema.bbox_head.retina_cls.weight.data.fill_(math.nan)


def test_an_average_of_nothing_is_not_a_fault(build):
    """EMA is copied before init_weights; DINO's level_embed may be NaN until then."""
    runner = build("retinanet", iters=2, hooks=[rollback()])
    runner.register_hook(Unborn(), priority="LOWEST")
    runner.train()
    assert helpers.ledger(runner, "rollback") == []
    file = torch.load(Path(runner.work_dir) / "rollback/iter_0.pth")
    assert nonfinite_names(file) == []
    # As MMEngine saves them: the average under the name of the weights.
    average, weights = file["state_dict"], file["ema_state_dict"]
    assert all(torch.equal(t, weights[f"module.{n}"]) for n, t in average.items())


def test_what_is_not_finite_is_not_written(build):
    """A poisoned buffer that no loss has shown, when CheckpointHook wants to save."""
    poison = helpers.fault("buffer", 5, where=BN)
    runner = build(
        "retinanet",
        iters=6,
        hooks=[poison, rollback(interval=3)],
        options={"default_hooks.checkpoint.interval": 6, "log_level": "WARNING"},
    )
    runner.train()
    assert "iter_6.pth" not in os.listdir(runner.work_dir)
    pointer = pointer_of(runner)
    assert pointer == os.path.join(runner.work_dir, "rollback", "iter_3.pth")
    told = "no checkpoint was written, for the state is not finite"
    assert re.search(rf"{told}[^\n]*:\n\S*/iter_6\.pth\n", helpers.log(runner))


def test_files_are_few_finite_and_whole(build):
    runner = build("retinanet", iters=10, hooks=[rollback(interval=2, keep=3)])
    runner.train()
    folder = os.path.join(runner.work_dir, "rollback")
    names = [name for name in sorted(os.listdir(folder)) if name.endswith(".pth")]
    assert names == ["iter_0.pth", "iter_4.pth", "iter_8.pth"]  # ages double
    assert set(os.listdir(folder)) <= {*names, "attempts.json", "started"}
    for name in names:
        checkpoint = read_safely(os.path.join(folder, name))
        assert checkpoint["meta"]["iter"] == int(name[5:-4])
        assert nonfinite_names(checkpoint["state_dict"]) == []
        assert "ema_state_dict" in checkpoint
        assert checkpoint["amp_hooks"]["RollbackHook"]["rollbacks"] == []


def test_a_new_run_does_not_hide_the_checkpoint_of_an_old_one(build, tmp_path):
    first = build("retinanet", iters=4, hooks=[rollback()], work_dir=tmp_path / "w")
    first.train()
    pointer = tmp_path / "w" / "last_checkpoint"
    before = pointer.read_text()
    build(
        "retinanet",
        iters=1,
        hooks=[rollback()],
        work_dir=tmp_path / "w",
        options={"default_hooks.checkpoint.save_last": False},
    ).train()
    assert pointer.read_text() == before


class Probe(Hook):
    """Calls a function before each iteration, first or last of all hooks."""

    def __init__(self, look, priority="LOWEST"):
        self.look, self.priority = look, priority

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.look(runner)


def test_a_folder_that_goes_away_costs_no_run(build):
    def look(runner):
        folder = Path(runner.work_dir) / "rollback"
        if runner.iter == 4:  # nothing can be written into it any more
            os.rename(folder, f"{folder}.gone")
            folder.touch()

    options = {"log_level": "WARNING"}
    runner = build("retinanet", iters=7, hooks=[rollback(interval=2)], options=options)
    runner.register_hook(Probe(look, "HIGHEST"))
    runner.train()
    assert runner.iter == 7
    ring = helpers.hook_of(runner, "RollbackHook")._ring
    assert [entry.iter for entry in ring.entries] == [4, 6]  # in memory all the same
    log = helpers.log(runner)
    assert "of iteration 6 could not be written" in log
    assert "kept in memory and training goes on" in log


def test_a_slow_disk_is_not_waited_for(build):
    """The file of iteration 2 takes longer than the rest of the run."""
    slow = helpers.fault("disk", 2, iters=5, value="slow:3")
    there = {}

    def look(runner):
        folder = Path(runner.work_dir) / "rollback"
        there[runner.iter] = sorted(p.name for p in folder.glob("*.pth"))

    runner = build(
        "retinanet",
        iters=8,
        hooks=[slow, rollback(interval=2)],
        options=no_last(),
    )
    runner.register_hook(Probe(look))
    begun = time.monotonic()
    runner.train()
    assert there[2] == ["iter_0.pth"]  # not before the third iteration
    assert time.monotonic() - begun > 3
    # At the end it was waited for, and for the newest of those that came meanwhile.
    folder = Path(runner.work_dir) / "rollback"
    assert "iter_2.pth" in os.listdir(folder)
    assert pointer_of(runner) == str(sorted(folder.glob("*.pth"))[-1])
    assert [p.name for p in folder.iterdir() if p.suffix == ".tmp"] == []


def test_accumulation_takes_snapshots_between_accumulations(build):
    hooks = [nan_weight(7), rollback(interval=4)]
    runner = build("retinanet", iters=9, accumulate=3, hooks=hooks)
    runner.train()
    # Iteration 4 lies inside an accumulation, so that snapshot waits for 6.
    snapshots = [e["iter"] for e in helpers.ledger(runner, "snapshot")]
    assert snapshots[:2] == [0, 6]
    (event,) = helpers.ledger(runner, "rollback")
    assert event["target_iter"] == 6
    assert nonfinite_names(helpers.state(runner)) == []


def test_healthy_run_is_left_alone(build):
    runner = build("retinanet", epochs=1, hooks=[rollback()])
    runner.train()
    hook = helpers.hook_of(runner, "RollbackHook")
    assert (hook.rollbacks, hook.total_lr_factor) == (0, 1.0)
    assert {e["event"] for e in helpers.ledger(runner)} <= {"snapshot", "overflow"}


# --- which snapshot, and how often ------------------------------------------------
def targets(runner):
    return [(e["iter"], e["target_iter"]) for e in helpers.ledger(runner, "rollback")]


@pytest.mark.parametrize(("probation", "target"), [(0, 4), (3, 0), (2, 4)])
def test_a_snapshot_counts_after_its_probation(build, probation, target):
    """Taken before iteration 4, two healthy iterations before the fault."""
    hooks = [nan_weight(6), rollback(interval=4, probation=probation)]
    runner = build("retinanet", iters=8, hooks=hooks)
    runner.train()
    assert targets(runner) == [(6, target)]


def test_only_a_snapshot_that_counts_is_written(build):
    names = {}

    def look(runner):
        pointer = Path(runner.work_dir) / "last_checkpoint"
        if pointer.exists():
            names[runner.iter] = os.path.basename(pointer.read_text())

    hooks = [rollback(interval=3, probation=2)]
    runner = build("retinanet", iters=8, hooks=hooks, options=no_last())
    runner.register_hook(Probe(look))
    runner.train()
    assert names[4] == "iter_0.pth"
    assert [e["iter"] for e in helpers.ledger(runner, "snapshot")] == [0, 3, 6]
    assert os.path.basename(pointer_of(runner)) == "iter_6.pth"


def no_last(**more):
    return {"default_hooks.checkpoint.save_last": False, **more}


def test_seven_of_twenty_are_too_many(build):
    """Never three in a row, but every other one; StepGuardHook keeps the state."""
    at = [2, 4, 6, 8, 10, 12, 14]
    hooks = [
        helpers.fault("loss", at),
        dict(type="amp_hooks.StepGuardHook"),
        rollback(interval=100),
    ]
    runner = build("retinanet", iters=16, hooks=hooks)
    runner.train()
    assert targets(runner) == [(14, 0)]
    (event,) = helpers.ledger(runner, "rollback")
    assert event["verdict"] == "FORWARD_NONFINITE"


@pytest.mark.parametrize(
    ("cooldown", "expected"),
    [(4, [(7, 6), (10, 3)]), (2, [(7, 6), (10, 9)])],
)
def test_within_the_cooldown_the_next_target_is_older(build, cooldown, expected):
    hooks = [nan_weight([7, 10]), rollback(interval=3, keep=3, cooldown=cooldown)]
    runner = build("retinanet", iters=12, hooks=hooks)
    runner.train()
    assert targets(runner) == expected


@pytest.mark.parametrize(
    ("limits", "at", "text"),
    [
        (dict(max_rollbacks=2), 9, "max_rollbacks=2"),
        (dict(max_recent=1, recent_iters=4), 6, "max_recent=1 in recent_iters=4"),
        (dict(max_recent=2, recent_iters=5), None, ""),
        (dict(max_rollbacks=0), 3, "max_rollbacks=0"),
    ],
)
def test_limits_in_total_and_of_late(build, limits, at, text):
    hooks = [nan_weight([3, 6, 9]), rollback(**limits)]
    runner = build("retinanet", iters=11, hooks=hooks)
    if at is None:
        runner.train()
        assert len(targets(runner)) == 3
        return
    with pytest.raises(TrainingDivergedError, match=f"iteration {at}.*{text}"):
        runner.train()
    (abort,) = helpers.ledger(runner, "abort")
    assert (abort["iter"], abort["limit"]) == (at, text)
    assert os.path.exists(abort["checkpoint"])


# --- what it changes --------------------------------------------------------------
def learning_rates(runner):
    rates = []
    runner.register_hook(
        Probe(lambda r: rates.append(r.optim_wrapper.param_groups[0]["lr"]))
    )
    runner.train()
    return rates


CONSTANT = dict(param_scheduler=[dict(type="ConstantLR", factor=1, by_epoch=False)])


def test_the_learning_rate_rises_to_its_new_value(build):
    hooks = [nan_weight(2), rollback(interval=100, lr_factor=0.5, warmup_iters=4)]
    runner = build("retinanet", iters=9, hooks=hooks, options=CONSTANT)
    rates = learning_rates(runner)
    lr = rates[0]
    ramp = [0.001 + 0.999 * i / 4 for i in range(4)]
    expected = [lr] * 3 + [0.5 * lr * r for r in ramp] + [0.5 * lr] * 2
    assert rates == pytest.approx(expected, rel=1e-12)
    factors = [r.get("lr_factor") for r in helpers.records(runner)]
    assert factors[:2] == [1.0, 1.0]
    assert factors[3:] == pytest.approx([0.5 * r for r in [*ramp, 1, 1]])


def test_the_learning_rate_recovers_after_clean_stretches(build):
    hooks = [nan_weight(1), rollback(interval=100, lr_factor=0.3, recover_after=2)]
    runner = build("retinanet", iters=9, hooks=hooks, options=CONSTANT)
    rates = learning_rates(runner)
    lr = rates[0]
    factors = [1, 1, 0.3, 0.3, 0.6, 0.6, 1, 1, 1]
    assert rates == pytest.approx([lr * f for f in factors], rel=1e-12)
    raised = [(e["iter"], e["lr_factor"]) for e in helpers.ledger(runner, "recover")]
    assert raised == [(3, 0.6), (5, 1.0)]


@pytest.mark.parametrize("reset", [False, True])
def test_momentum_is_kept_or_reset(build, reset):
    seen = {}

    def look(runner):
        state = runner.optim_wrapper.optimizer.state_dict()["state"]
        seen[runner.iter] = len(state)

    hooks = [nan_weight(4), rollback(reset_optimizer=reset)]
    runner = build("retinanet", iters=6, hooks=hooks)
    runner.register_hook(Probe(look))
    runner.train()
    assert targets(runner) == [(4, 3)]
    assert seen[3] > 0
    assert seen[5] == (0 if reset else seen[3])


def test_a_second_rollback_to_one_snapshot_finds_it_as_it_was(build):
    """Training after the first must not have written into the copy."""
    states = {}

    def look(runner):
        states[runner.iter] = helpers.state(runner)

    hooks = [
        nan_weight([4, 5]),
        rollback(lr_factor=1.0, scale_factor=1.0, cooldown=0, interval=3),
    ]
    options = {"optim_wrapper.loss_scale": 128.0, **CONSTANT}
    runner = build("retinanet", iters=7, hooks=hooks, options=options)
    runner.register_hook(Probe(look))
    runner.train()
    assert targets(runner) == [(4, 3), (5, 3)]
    first, second = states[5], states[6]
    names = [n for n in states[3] if n in second]
    assert [n for n in names if not torch.equal(first[n], second[n])] == []
    assert [n for n in names if not torch.equal(states[3][n], second[n])] == []


# --- poison -----------------------------------------------------------------------
def poison_scale(value):
    def look(runner):
        if runner.iter == 4:
            runner.optim_wrapper.loss_scaler._scale.fill_(value)

    return look


@pytest.mark.parametrize(
    "poison",
    [
        pytest.param(helpers.fault("ema", 4, where=CLS), id="ema"),
        pytest.param(helpers.fault("buffer", 4, where=BN), id="batchnorm"),
        pytest.param(helpers.fault("optimizer", 4, where=CLS), id="momentum"),
        pytest.param(poison_scale(math.nan), id="scale nan"),
        pytest.param(poison_scale(math.inf), id="scale inf"),
        pytest.param(poison_scale(0.0), id="scale 0"),
    ],
)
def test_poison_is_found_before_a_snapshot_counts(build, poison):
    hooks = [rollback(interval=3)]
    options = {"optim_wrapper.loss_scale": dict(init_scale=128.0, _delete_=True)}
    if isinstance(poison, dict):
        hooks.insert(0, poison)
    runner = build("retinanet", iters=8, hooks=hooks, options=options)
    if not isinstance(poison, dict):
        runner.register_hook(Probe(poison))
    runner.train()
    ((at, target),) = targets(runner)
    assert at in (4, 5, 6)
    assert target == 3
    assert nonfinite_names(helpers.state(runner)) == []
    assert runner.optim_wrapper.loss_scaler.get_scale() == 64.0
    for path in (Path(runner.work_dir) / "rollback").iterdir():
        if path.suffix == ".pth":
            saved = read_safely(path)
            learned = [saved["state_dict"], saved["ema_state_dict"]]
            assert nonfinite_names([*learned, saved["optimizer"]]) == []
            assert 0 < saved["optimizer"]["loss_scaler"]["scale"] <= 128


def test_buffers_that_no_checkpoint_holds_are_taken_back_too(build):
    runner = build("retinanet", iters=8, hooks=[rollback()], options=no_last())
    buffer = torch.ones(2)
    runner.model.register_buffer("cache", buffer, persistent=False)
    runner.register_hook(Probe(lambda r: r.iter == 4 and buffer.fill_(math.nan)))
    runner.train()
    (event,) = helpers.ledger(runner, "rollback")
    assert event["nonfinite_state"] == ["buffers.cache"]
    assert torch.equal(runner.model.cache, torch.ones(2))


def test_what_an_optimizer_has_learned_in_its_groups_is_taken_back(build):
    """As D-Adaptation and Prodigy estimate their step size there."""

    class Estimates(Hook):
        priority = "HIGHEST"

        def before_train(self, runner):
            (self.group,) = runner.optim_wrapper.optimizer.param_groups
            self.group.update(d=1.0, growth_rate=math.inf)  # the latter by design

        def before_train_iter(self, runner, batch_idx, data_batch=None):
            if runner.iter == 4:
                self.group["d"] = math.nan

    runner = build("retinanet", iters=8, hooks=[rollback()], options=no_last())
    runner.register_hook(Estimates())
    runner.train()
    (event,) = helpers.ledger(runner, "rollback")
    assert event["nonfinite_state"] == ["optimizer..param_groups[0].d"]
    assert runner.optim_wrapper.optimizer.param_groups[0]["d"] == 1.0


@OPTIMIZERS.register_module()
class KeepsBounds(torch.optim.SGD):
    """Momentum, and the smallest gradient norm yet, which begins as infinity."""

    def step(self, closure=None):
        super().step(closure)
        for param in self.param_groups[0]["params"]:
            smallest = torch.full((), math.inf)
            self.state[param].setdefault("smallest", smallest)


def test_what_is_infinite_in_an_optimizer_by_design(build):
    options = no_last(**{"optim_wrapper.optimizer.type": "KeepsBounds"})
    runner = build("retinanet", iters=8, hooks=[rollback()], options=options)
    runner.train()
    assert [e["iter"] for e in helpers.ledger(runner, "snapshot")] == [0, 3, 6]
    assert not helpers.ledger(runner, "rollback")


# --- files ------------------------------------------------------------------------
class Adds(Hook):
    """Puts something into every checkpoint, as hooks of users do."""

    def __init__(self, thing):
        self.thing = thing

    def before_save_checkpoint(self, runner, checkpoint):
        checkpoint["thing"] = self.thing


def test_nan_in_what_others_add_is_no_damage(build):
    runner = build("retinanet", iters=5, hooks=[rollback()], options=no_last())
    runner.register_hook(Adds([torch.tensor(math.nan)]))
    runner.train()
    assert [e["iter"] for e in helpers.ledger(runner, "snapshot")] == [0, 3]


class Refuses(Hook):
    def before_save_checkpoint(self, runner, checkpoint):
        raise LookupError("this hook is broken")


def test_a_hook_that_cannot_add_its_part_costs_the_files_only(build):
    hooks = [nan_weight(4), rollback()]
    runner = build(
        "retinanet", iters=6, hooks=hooks, options=no_last(log_level="WARNING")
    )
    runner.register_hook(Refuses())
    runner.train()
    assert targets(runner) == [(4, 3)]
    assert helpers.ledger(runner, "snapshot") == []
    assert "this hook is broken" in helpers.log(runner)


def test_a_file_that_was_being_written_when_the_run_went_back_further(build):
    """It carries the disease; a resume must not find it."""
    hooks = [
        nan_weight([7, 8]),
        helpers.fault("disk", 6, value="slow:3"),
        rollback(keep=3),
    ]
    runner = build("retinanet", iters=11, hooks=hooks, options=no_last())
    runner.train()
    assert targets(runner) == [(7, 6), (8, 3)]
    names = [p.name for p in (Path(runner.work_dir) / "rollback").glob("*.pth")]
    assert "iter_6.pth" not in names
    newest = max(names, key=lambda name: int(name[5:-4]))
    assert newest in ("iter_9.pth", "iter_10.pth")
    assert os.path.basename(pointer_of(runner)) == newest


@helpers.NEEDS_FP16
def test_the_last_file_is_finished_though_training_raises(digits, tmp_path):
    """A process that ends while its thread writes would be aborted by torch."""
    hooks = [
        helpers.fault("raise", 1),
        helpers.fault("disk", 0, value="slow:2"),
        rollback(),
    ]
    cfg = helpers.make_config("retinanet", digits, tmp_path / "w", iters=9, hooks=hooks)
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.dump(tmp_path / "c.py")
    done = processes.fork(*processes.train(tmp_path / "c.py")[1:], status=1)
    assert "matrix contains invalid numeric entries" in done.stderr
    (path,) = (tmp_path / "w" / "rollback").glob("*.pth")
    assert damage(str(path)) is None


# --- accumulation, static scale, attempts ------------------------------------------
def test_one_bad_batch_of_an_accumulation_is_one_bad_accumulation(build):
    hooks = [
        helpers.fault("loss", 8),
        dict(type="amp_hooks.StepGuardHook"),
        rollback(patience=2, interval=100),
    ]
    runner = build("retinanet", iters=16, accumulate=4, hooks=hooks)
    runner.train()
    overflows = [e["iter"] for e in helpers.ledger(runner, "overflow")]
    assert overflows == [11]  # before the step no gradient is known
    assert targets(runner) == []


def test_probation_is_counted_in_iterations_of_the_accumulations(build):
    hooks = [rollback(interval=4, probation=4)]
    runner = build("retinanet", iters=17, accumulate=4, hooks=hooks, options=no_last())
    runner.train()
    snapshots = [e["iter"] for e in helpers.ledger(runner, "snapshot")]
    assert snapshots == [0, 4, 8, 12]


def test_a_static_scale_that_nobody_lowers_is_bad(build):
    """Without StepGuardHook; MMEngine writes the configured number back."""
    runner = build(
        "retinanet",
        iters=4,
        hooks=[rollback(patience=3)],
        options={"optim_wrapper.loss_scale": 2.0**60},
    )
    runner.train()
    (event,) = helpers.ledger(runner, "rollback")
    assert (event["iter"], event["verdict"]) == (2, "GRAD_NONFINITE")
    assert event["scale"] == 2.0**59


def test_the_scale_is_lowered_for_each_rollback_since_the_snapshot(build):
    hooks = [nan_weight([1, 2, 3]), rollback(interval=100)]
    options = {"optim_wrapper.loss_scale": 128.0}
    runner = build("retinanet", iters=5, hooks=hooks, options=options)
    runner.train()
    assert [e["scale"] for e in helpers.ledger(runner, "rollback")] == [64, 32, 16]


def test_resumed_from_the_first_checkpoint_the_attempts_still_count(build, tmp_path):
    hooks = [nan_weight(1), rollback(interval=100, max_rollbacks=1)]
    work = dict(hooks=hooks, work_dir=tmp_path, options=no_last())
    first = build("retinanet", iters=3, **work)
    first.train()
    for path in (tmp_path / "rollback").glob("*.pth"):  # as if killed before
        if path.name != "iter_0.pth":
            path.unlink()
    work["options"] = no_last(resume=True)
    second = build("retinanet", iters=3, **work)
    with pytest.raises(TrainingDivergedError, match="1 rollback,.*max_rollbacks=1"):
        second.train()


def test_what_no_step_has_done_leaves_the_learning_rate(build):
    """A guard checks every step; the same again within the cooldown is another case."""
    hooks = [
        dict(type="amp_hooks.StepGuardHook"),
        dict(type="amp_hooks.RollbackHook", interval=2, probation=0, cooldown=3),
        helpers.fault("parameter", [3, 5, 12], where="backbone.conv1.weight"),
    ]
    runner = build("retinanet", iters=14, hooks=hooks, precision="float32")
    runner.train()
    factors = [line["lr_factor"] for line in helpers.ledger(runner, "rollback")]
    assert factors == [1.0, 0.1, 0.1]


def test_training_itself_can_overflow_and_lowers_the_learning_rate(build):
    """As a weight does of finite gradients, where the learning rate is absurd."""
    where = "backbone.conv1.weight"
    hooks = [
        dict(type="amp_hooks.StepGuardHook"),
        dict(type="amp_hooks.RollbackHook", interval=2, probation=0, cooldown=3),
        helpers.fault("parameter", 3, where=where, value="inf"),
        helpers.fault("parameter", 12, where=where, value="nan"),
    ]
    runner = build("retinanet", iters=16, hooks=hooks, precision="float32")
    runner.train()
    factors = [line["lr_factor"] for line in helpers.ledger(runner, "rollback")]
    assert factors == [0.1, 0.1]


def bad_forward(at):
    return helpers.fault("forward", at, where="backbone.conv1", value="inf")


@pytest.mark.parametrize(
    "loop", [dict(iters=20), dict(epochs=2)], ids=["iter", "epoch"]
)
def test_a_learning_rate_that_has_gone_well_is_kept(build, loop):
    """Once; what comes back soon is its fault after all."""
    hooks = [
        dict(type="amp_hooks.StepGuardHook"),
        rollback(patience=1, keep_lr_after=6, cooldown=0),
        bad_forward([3, 11, 15]),
    ]
    runner = build("retinanet", hooks=hooks, options=CONSTANT, **loop)
    runner.train()
    lines = helpers.ledger(runner, "rollback")
    assert [line["iter"] for line in lines] == [3, 11, 15]
    assert [line["lr_factor"] for line in lines] == pytest.approx([0.1, 0.1, 0.01])


def test_it_is_told_why_the_learning_rate_stays(build):
    hooks = [rollback(patience=1, keep_lr_after=2), bad_forward(5)]
    options = {**CONSTANT, "log_level": "WARNING"}
    runner = build("retinanet", iters=7, hooks=hooks, options=options)
    runner.train()
    assert "unchanged, for it has gone well for 2 iterations" in helpers.log(runner)


def test_a_learning_rate_still_rising_is_not_known_to_go_well(build):
    rising = dict(type="LinearLR", start_factor=0.01, by_epoch=False, end=100)
    hooks = [rollback(patience=1, keep_lr_after=2), bad_forward(6)]
    options = {"param_scheduler": [rising]}
    runner = build("retinanet", iters=8, hooks=hooks, options=options)
    runner.train()
    (line,) = helpers.ledger(runner, "rollback")
    assert line["lr_factor"] == 0.1


def test_a_re_warm_up_is_a_rise(build):
    hooks = [
        rollback(patience=1, keep_lr_after=4, warmup_iters=12, cooldown=0),
        bad_forward([3, 12]),
    ]
    runner = build("retinanet", iters=14, hooks=hooks, options=CONSTANT)
    runner.train()
    lines = helpers.ledger(runner, "rollback")
    assert [line["lr_factor"] for line in lines] == pytest.approx([0.1, 0.01])


def test_what_goes_well_is_remembered_over_a_resume(build, tmp_path):
    options = {**CONSTANT, "default_hooks.checkpoint.interval": 4}
    hooks = [rollback(patience=1, keep_lr_after=5), bad_forward(7)]
    run = dict(work_dir=tmp_path / "run", hooks=hooks)
    build("retinanet", iters=4, options=options, **run).train()
    options = {**options, "resume": True}
    runner = build("retinanet", iters=9, options=options, **run)
    runner.train()
    (line,) = helpers.ledger(runner, "rollback")
    assert (line["iter"], line["lr_factor"]) == (7, 1.0)


@pytest.mark.parametrize(("when", "target"), [("triggered", 0), ("always", 4)])
def test_iterations_that_need_the_clamp_prove_little(build, when, target):
    """Of a model that only a clamp keeps finite, the snapshot may be lost already."""
    clamp = dict(type="amp_hooks.HeadClampHook", when=when, limit=1e-3, trigger=1e-3)
    hooks = [clamp, rollback(interval=4, probation=4, patience=1), bad_forward(10)]
    runner = build("retinanet", iters=12, hooks=hooks, options=CONSTANT)
    runner.train()
    assert targets(runner) == [(10, target)]
