"""The check on real Runners, and that what it says is what happens."""

from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook

from amp_hooks.config_check.check import check_config
from amp_hooks.config_check.of_config import facts_of_config
from amp_hooks.config_check.of_runner import facts_of_runner
from tests import helpers
from tests.integration.test_optim_wrapper_dict import options as two_optimizers

CAPPED = {"optim_wrapper.clip_grad": None}
WARM = [dict(type="LinearLR", start_factor=0.1, by_epoch=False, begin=0, end=1)]


class Checks(Hook):
    """Calls the check where a hook would, and keeps what it needs to be tested."""

    priority = 5

    def before_train(self, runner):
        self.found = check_config(runner)
        self.facts = facts_of_runner(runner)
        self.start = helpers.state(runner)


def checked(runner):
    """The names of the findings; the run, and what it knew of itself."""
    hook = Checks()
    runner.register_hook(hook)
    runner.train()
    return hook


def names(hook):
    return [finding.name for finding in hook.found]


def test_a_healthy_run_is_silent(build):
    options = {"param_scheduler": WARM}
    hook = checked(build("retinanet", iters=2, hooks=helpers.SUITE, options=options))
    assert hook.found == []


class Foreign(Hook):
    """Has by chance an attribute that ours have as well."""

    arguments = ("--lr", "0.1")


def test_a_batch_sampler_and_a_hook_of_others(build):
    """MMDetection's default batch sampler leaves the loader without a batch size."""
    sampler = dict(type="mmdet.AspectRatioBatchSampler")
    runner = build(
        "retinanet",
        iters=1,
        hooks=[dict(type="amp_hooks.StepGuardHook")],
        options={"train_dataloader.batch_sampler": sampler},
    )
    runner.register_hook(Foreign())
    hook = checked(runner)
    assert runner.train_dataloader.batch_size is None
    assert hook.facts.batch_size == 2
    assert hook.facts.has("Foreign")
    (start,) = helpers.ledger(runner, "start")
    assert start["batch_size"] == 2
    assert list(start["hooks"]) == ["StepGuardHook"]


@pytest.mark.parametrize("loop", [dict(iters=3), dict(epochs=1)])
def test_what_a_runner_knows(build, loop):
    runner = build(
        "retinanet",  # mmcv has no BF16 on a CPU for two-stage ones
        hooks=[dict(type="amp_hooks.StabilityHook", rollback=None)],
        precision="bfloat16",
        accumulate=2,
        options={"optim_wrapper.loss_scale": 512.0},
        **loop,
    )
    facts = checked(runner).facts
    assert (facts.world_size, facts.batch_size, facts.iteration) == (1, 2, 0)
    assert facts.epoch_length == 12
    assert facts.max_iters == (3 if "iters" in loop else 12)
    assert not facts.resume
    (wrapper,) = facts.wrappers
    assert (wrapper.kind, wrapper.dtype) == ("CpuAmpOptimWrapper", "bfloat16")
    assert (wrapper.static_scale, wrapper.accumulate) == (512.0, 2)
    assert (wrapper.clips, wrapper.max_norm) == (True, 35)
    assert (wrapper.optimizer, wrapper.lr) == ("AdamW", 0.001)
    assert facts.has("StepGuardHook")
    assert facts.has("EMAHook")
    assert not facts.has("RollbackHook")
    # The same from the config alone, but for what only a data set tells.
    estimated = facts_of_config(runner.cfg)
    assert estimated.wrappers == facts.wrappers
    assert estimated.batch_size == facts.batch_size

    def ours(which):
        kinds = [hook.kinds for hook in which.hooks if "Checks" not in hook.kinds]
        return [k - {"AmpHook", "Hook", "object"} for k in kinds]

    # PrecisionFallbackHook takes itself out of a run in which it could never act.
    left = [k for k in ours(estimated) if "PrecisionFallbackHook" not in k]
    assert left == ours(facts)


def test_everything_at_once(build):
    runner = build(
        "faster_rcnn",
        iters=1,
        hooks=[
            dict(type="CheckInvalidLossHook", interval=50),
            dict(type="amp_hooks.RollbackHook"),
        ],
        options={
            "fp16": dict(loss_scale=512.0),
            "optimizer_config": dict(grad_clip=dict(max_norm=35)),
            "optim_wrapper.clip_grad": None,
            "optim_wrapper.optimizer.lr": 0.1,
            "val_cfg": dict(fp16=True),
        },
    )
    runner.cfg.val_cfg = dict(type="ValLoop", fp16=True)  # this run has none
    hook = checked(runner)
    assert names(hook) == [
        "ignored_fp16",
        "ignored_optimizer_config",
        "no_clip_grad",
        "high_lr",
        "val_fp16",
        "check_invalid_loss",
    ]
    assert "is 40 times what linear scaling gives" in hook.found[3].what


def test_two_optimizers(build):
    options = {**two_optimizers(), "param_scheduler": WARM}
    hook = checked(build("retinanet", iters=1, options=options))
    assert names(hook) == ["no_clip_grad", "no_clip_grad"]
    whats = [finding.what.split(" ")[0] for finding in hook.found]
    assert whats == ["optim_wrapper.body", "optim_wrapper.head"]


def test_a_resume_without_the_ema_it_began_with(build, tmp_path):
    first = build(
        "retinanet",
        iters=4,
        precision="float32",
        work_dir=tmp_path / "w",
        options={"default_hooks.checkpoint.interval": 4},
    )
    first.train()
    path = str(tmp_path / "w/iter_4.pth")
    saved = torch.load(path, weights_only=False)
    options = {
        "resume": True,
        "load_from": path,
        "param_scheduler": WARM,
    }
    runs = {
        ema: build(
            "retinanet",
            iters=6,
            precision="float32",
            ema=ema,
            hooks=helpers.MONITORS[:1],
            options=options,
        )
        for ema in (False, True)
    }
    without, with_it = checked(runs[False]), checked(runs[True])
    assert names(without) == ["resume_without_ema"]
    assert names(with_it) == []
    assert with_it.facts.resume
    assert with_it.facts.iteration == 4
    # As the finding says: the averaged weights in the place of the trained ones.
    name = "bbox_head.retina_cls.weight"
    trained = saved["ema_state_dict"][f"module.{name}"]
    averaged = saved["state_dict"][name]
    assert not torch.equal(trained, averaged)
    key = next(k for k in with_it.start if k.endswith(name) and "ema" not in k)
    assert torch.equal(with_it.start[key], trained)
    assert torch.equal(without.start[key], averaged)


class Evaluated(Hook):
    """Keeps the weights that were evaluated."""

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        state = runner.model.state_dict()
        self.weights = {name: tensor.clone() for name, tensor in state.items()}


@pytest.mark.parametrize(("priority", "right"), [(49, True), (95, False)])
def test_ema_behind_checkpoints_writes_the_wrong_best(build, priority, right):
    runner = build(
        "retinanet",
        iters=3,
        precision="float32",
        validate=True,
        options={
            "default_hooks.ema.priority": priority,
            "default_hooks.checkpoint.save_best": "auto",
            "model.test_cfg.score_thr": 0.0,
            "param_scheduler": WARM,
        },
    )
    hook = Evaluated()
    runner.register_hook(hook)
    assert names(checked(runner)) == ([] if right else ["ema_after_checkpoint"])
    (best,) = Path(runner.work_dir).glob("best_*.pth")
    saved = torch.load(best, weights_only=False)["state_dict"]
    name = "bbox_head.retina_cls.weight"
    assert torch.equal(saved[name], hook.weights[name]) is right


def test_a_static_scale_that_overflows_stands_still(build):
    """And with StepGuardHook, when the check is silent, it comes down."""
    scales = {}
    for hooks in (helpers.MONITORS[:1], [dict(type="amp_hooks.StepGuardHook")]):
        runner = build(
            "retinanet",
            iters=6,
            hooks=hooks,
            options={"optim_wrapper.loss_scale": 2.0**60, "param_scheduler": WARM},
        )
        hook = checked(runner)
        scales[tuple(names(hook))] = runner.optim_wrapper.loss_scaler.get_scale()
    assert scales == {("static_loss_scale",): 2.0**60, (): 2.0**54}


def test_a_rule_that_fails_costs_itself_only(build):
    runner = build(
        "retinanet",
        iters=1,
        options={"lr_config": dict(policy="step", step=[1]), **CAPPED},
    )
    runner.cfg.param_scheduler = [dict(type="LinearLR", begin="soon")]
    hook = checked(runner)
    assert names(hook) == ["ignored_lr_config", "no_clip_grad"]
    assert runner.iter == 1


def test_the_check_changes_nothing(build):
    plain = build("retinanet", iters=3, options={"fp16": dict(loss_scale=512.0)})
    plain.train()
    torch.manual_seed(0)
    looked = build("retinanet", iters=3, options={"fp16": dict(loss_scale=512.0)})
    assert "ignored_fp16" in names(checked(looked))
    assert helpers.losses(plain) == helpers.losses(looked)
