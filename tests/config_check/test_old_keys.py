"""Settings of 2.x: what is lost, and the lines that 3.x reads."""

import pytest
from mmengine.config import Config, ConfigDict

from amp_hooks.config_check.facts import Facts
from amp_hooks.config_check.old_keys import ignored_keys

CLIP = dict(max_norm=35, norm_type=2)
SGD = dict(type="SGD", lr=0.02, momentum=0.9)
STEP = dict(policy="step", step=[8, 11])
WARM = dict(STEP, warmup="linear", warmup_iters=500, warmup_ratio=0.001)


def lines_of(cfg):
    """What is to be written, by key."""
    return {f.name[len("ignored_") :]: f.lines for f in ignored_keys(cfg, Facts())}


@pytest.mark.parametrize(
    ("key", "value", "lines"),
    [
        (
            "fp16",
            dict(loss_scale="dynamic"),
            "optim_wrapper = dict(type='AmpOptimWrapper', loss_scale='dynamic')",
        ),
        (
            "fp16",
            dict(loss_scale=512.0),
            "optim_wrapper = dict(type='AmpOptimWrapper', "
            "loss_scale=dict(init_scale=512.0))",
        ),
        (
            "fp16",
            dict(loss_scale=dict(init_scale=1024.0, mode="dynamic")),
            "optim_wrapper = dict(type='AmpOptimWrapper', "
            "loss_scale=dict(init_scale=1024.0))",
        ),
        (
            "fp16",
            True,
            "optim_wrapper = dict(type='AmpOptimWrapper', loss_scale='dynamic')",
        ),
        (
            "optimizer_config",
            dict(grad_clip=CLIP),
            "optim_wrapper = dict(clip_grad=dict(max_norm=35, norm_type=2))",
        ),
        (
            "optimizer_config",
            dict(type="GradientCumulativeOptimizerHook", cumulative_iters=4),
            "optim_wrapper = dict(accumulative_counts=4)",
        ),
        (
            "optimizer_config",
            dict(type="Fp16OptimizerHook", grad_clip=CLIP),
            "optim_wrapper = dict(type='AmpOptimWrapper', loss_scale='dynamic', "
            "clip_grad=dict(max_norm=35, norm_type=2))",
        ),
        (
            "optimizer",
            dict(SGD, paramwise_cfg=dict(norm_decay_mult=0.0)),
            "optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.02, momentum=0.9), "
            "paramwise_cfg=dict(norm_decay_mult=0.0))",
        ),
        (
            "lr_config",
            WARM,
            "param_scheduler = [\n"
            "    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, "
            "end=500),\n"
            "    dict(type='MultiStepLR', by_epoch=True, milestones=[8, 11], "
            "gamma=0.1),\n]",
        ),
        (
            "lr_config",
            dict(policy="CosineAnnealing", min_lr_ratio=1e-5, by_epoch=False),
            "# in param_scheduler: CosineAnnealingLR, its end that of the run",
        ),
        ("lr_config", dict(policy="YOLOX"), ""),
        (
            "runner",
            dict(type="EpochBasedRunner", max_epochs=24),
            "train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=24)",
        ),
        (
            "runner",
            dict(type="IterBasedRunner", max_iters=90000),
            "train_cfg = dict(type='IterBasedTrainLoop', max_iters=90000)",
        ),
        (
            "total_epochs",
            24,
            "train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=24)",
        ),
        (
            "evaluation",
            dict(interval=2, metric="bbox", save_best="auto"),
            "train_cfg = dict(val_interval=2)\n"
            "val_evaluator = dict(metric='bbox')\n"
            "default_hooks = dict(checkpoint=dict(save_best='auto'))",
        ),
        (
            "checkpoint_config",
            dict(interval=4),
            "default_hooks = dict(checkpoint=dict(interval=4))",
        ),
        (
            "log_config",
            dict(interval=10, hooks=[dict(type="TensorboardLoggerHook")]),
            "default_hooks = dict(logger=dict(interval=10))\n"
            "visualizer = dict(vis_backends=[dict(type='LocalVisBackend'), "
            "dict(type='TensorboardVisBackend')])",
        ),
        (
            "data",
            dict(samples_per_gpu=2, workers_per_gpu=4),
            "train_dataloader = dict(batch_size=2, num_workers=4)",
        ),
        (
            "data",
            dict(samples_per_gpu=2, train=dict(type="CocoDataset")),
            "train_dataloader = dict(batch_size=2, dataset=dict(...))",
        ),
        ("workflow", [("train", 1), ("val", 1)], ""),
        ("resume_from", "work/a.pth", "resume = True\nload_from = 'work/a.pth'"),
        ("auto_resume", True, "resume = True"),
    ],
)
def test_a_key_that_is_ignored(key, value, lines):
    assert lines_of({key: value}) == {key: lines}
    if lines and "..." not in lines:
        # Once the lines are in the config, the old key beside them is harmless.
        written = {}
        exec(lines, {}, written)
        left = lines_of({key: value, **written})
        assert key in ("fp16", "lr_config") or left == {}


@pytest.mark.parametrize(
    "cfg",
    [
        dict(fp16=None),
        dict(optimizer_config=dict(grad_clip=None)),  # what 2.x's configs begin with
        dict(optimizer_config=dict()),
        dict(lr_config=dict(policy="fixed")),
        dict(workflow=[("train", 1)]),
        dict(resume_from=None, auto_resume=False),
        dict(log_config=dict(hooks=[dict(type="TextLoggerHook")])),
        # Variables of the user's own.
        dict(data="coco", runner="me", optimizer="adamw", total_epochs="many"),
        dict(data=dict(root="data/coco")),
        # In 3.x's place as well.
        dict(optimizer=SGD, optim_wrapper=dict(optimizer=dict(SGD, weight_decay=0.1))),
        dict(optimizer_config=dict(grad_clip=CLIP), optim_wrapper=dict(clip_grad=CLIP)),
        dict(
            total_epochs=12, train_cfg=dict(type="EpochBasedTrainLoop", max_epochs=12)
        ),
    ],
)
def test_what_costs_nothing_is_not_told(cfg):
    assert lines_of(cfg) == {}
    assert lines_of(ConfigDict(cfg)) == {}


def test_the_words_name_key_value_and_place():
    cfg = dict(optimizer_config=dict(grad_clip=CLIP))
    (finding,) = ignored_keys(cfg, Facts())
    assert finding.what == (
        "The config has optimizer_config=dict(grad_clip=dict(max_norm=35, "
        "norm_type=2)), which MMDetection 3.x ignores."
    )
    assert finding.remedy == "Delete it; 3.x reads optim_wrapper:"


def test_fp16_beside_mixed_precision_is_only_to_be_deleted():
    cfg = dict(fp16=dict(loss_scale=512.0), optim_wrapper=dict(type="AmpOptimWrapper"))
    assert lines_of(cfg) == {"fp16": ""}


@pytest.mark.parametrize(
    "length",
    [
        dict(runner=dict(max_epochs=12)),
        dict(total_epochs=12),
        dict(train_cfg=dict(type="EpochBasedTrainLoop", max_epochs=12)),
    ],
)
@pytest.mark.parametrize("policy", ["CosineAnnealing", "poly"])
def test_a_schedule_that_takes_the_whole_run_gets_its_end(length, policy):
    lines = lines_of(dict(lr_config=dict(policy=policy), **length))["lr_config"]
    written = {}
    exec(lines, {}, written)
    (scheduler,) = written["param_scheduler"]
    assert (scheduler["begin"], scheduler["end"]) == (0, 12)
    counted = dict(lr_config=dict(policy=policy, by_epoch=False), **length)
    assert lines_of(counted)["lr_config"].startswith("# in param_scheduler: ")


@pytest.mark.parametrize(
    ("old", "present"),
    [
        (
            dict(runner=dict(max_iters=9)),
            dict(type="EpochBasedTrainLoop", max_epochs=12, val_interval=1),
        ),
        (dict(total_epochs=9), dict(type="IterBasedTrainLoop", max_iters=5)),
        (dict(total_epochs=9), dict(by_epoch=True, max_epochs=5)),
        (dict(optimizer=dict(type="AdamW", lr=1e-4)), dict(optimizer=SGD)),
    ],
)
def test_lines_replace_what_is_inherited_of_another_type(old, present):
    key = "optim_wrapper" if "optimizer" in old else "train_cfg"
    (lines,) = lines_of({**old, key: present}).values()
    written = {}
    exec(lines, {}, written)
    merged = Config._merge_a_into_b(written, {key: present})[key]
    merged = merged.get("optimizer", merged)
    assert merged in (
        dict(type="IterBasedTrainLoop", max_iters=9),
        dict(type="EpochBasedTrainLoop", max_epochs=9),
        dict(type="AdamW", lr=1e-4),
    )


def test_a_metric_has_no_line_among_several_evaluators():
    cfg = dict(evaluation=dict(metric="bbox"), val_evaluator=[dict(type="A")])
    assert lines_of(cfg) == {"evaluation": ""}
    cfg["val_evaluator"].append(dict(type="B", metric="bbox"))
    assert lines_of(cfg) == {}
