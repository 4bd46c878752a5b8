"""One line in place of the list: the members do what they do when listed."""

import math
import os.path as osp

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.hub import get_config
from mmengine.registry import HOOKS
from mmengine.runner import Runner, find_latest_checkpoint

import amp_hooks
from amp_hooks.members import MEMBERS
from tests import helpers, small

CLS = "bbox_head.retina_cls.weight"
LOGGED = dict(log_level="INFO")
NAMES = list(MEMBERS.values())
IN_FP32 = [name for name in NAMES if name != "PrecisionFallbackHook"]


def stability(**members):
    return dict(type="amp_hooks.StabilityHook", **members)


def ours(runner):
    """Our hooks in the order in which they run."""
    names = [type(hook).__name__ for hook in runner.hooks]
    return [n for n in names if n in amp_hooks.__all__]


def line(runner):
    """The one line on what is on."""
    lines = helpers.log(runner).splitlines()
    (found,) = [text for text in lines if "[amp_hooks] StabilityHook: " in text]
    return found.split("StabilityHook: ")[1]


# --- arguments ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (dict(rollbak=None), TypeError, "no argument 'rollbak'.*'rollback'.*panel"),
        (dict(rollback=5), TypeError, r"rollback must be .*interval=500.*None.*got 5"),
        (dict(rollback="auto"), TypeError, "rollback must be .*got 'auto'"),
        (dict(rollback=[dict()]), TypeError, r"rollback must be .*got \[\{\}\]"),
        (dict(precision_fallback="on"), TypeError, "precision_fallback must.*got 'on'"),
        (dict(head_clamp=[dict(), 3]), TypeError, r"a list of such dicts.*got \[.*3\]"),
        (
            dict(rollback=dict(interval=0)),
            ValueError,
            r"rollback=\{'interval': 0\}.*at least 1, got 0.*rollback=None",
        ),
        (
            dict(panel=dict(intervall=3)),
            TypeError,
            r"panel=.*StabilityPanelHook has no argument 'intervall'.*'interval'",
        ),
        (dict(rollback=dict(priority=60)), TypeError, "no argument 'priority'"),
        (
            dict(head_clamp=[dict(), dict(limit=-1.0)]),
            ValueError,
            r"head_clamp=\{'limit': -1.0\}.*greater than 0",
        ),
    ],
)
def test_wrong_members_are_refused_with_argument_value_and_remedy(
    arguments, error, words
):
    with pytest.raises(error, match=words) as e:
        HOOKS.build(stability(**arguments))
    assert "StabilityHook" in str(e.value)


def test_wrong_members_are_refused_when_the_runner_is_built(build):
    with pytest.raises(TypeError, match="StabilityHook: rollback must be.*got 5"):
        build("retinanet", iters=1, hooks=[stability(rollback=5)])


def test_members_get_their_arguments():
    hook = HOOKS.build(
        stability(
            rollback=dict(interval=7, keep=3),
            head_clamp=[dict(limit=50.0), dict(limit=9.0, targets="*.ffn")],
            cls_score=None,
            panel=False,
        )
    )
    (rollback,) = hook.members["rollback"]
    assert (rollback.interval, rollback.keep, rollback.patience) == (7, 3, 3)
    assert [clamp.limit for clamp in hook.members["head_clamp"]] == [50.0, 9.0]
    assert hook.members["cls_score"] == hook.members["panel"] == []
    assert [type(h).__name__ for h in hook.members["step_guard"]] == ["StepGuardHook"]


# --- joining the run ------------------------------------------------------------------


class Witness:
    """Writes down the events that MMEngine brings to a hook."""

    def __init__(self, hook):
        self.events = []
        for event in Hook.stages:
            self._wrap(hook, event)

    def _wrap(self, hook, event):
        original = getattr(hook, event)

        def called(*args, **kwargs):
            self.events.append(event)
            return original(*args, **kwargs)

        setattr(hook, event, called)


def witnessed(runner):
    """A witness for each hook that is there or is going to be."""
    (stability_hook,) = [
        h for h in runner.hooks if isinstance(h, amp_hooks.StabilityHook)
    ]
    hooks = [h for hooks in stability_hook.members.values() for h in hooks]
    return {type(h).__name__: Witness(h) for h in [*hooks, *runner.hooks]}


def test_members_see_every_event_exactly_once_however_often_it_is_run(build):
    """val, train and test: before_run each time, the optimizer only from the second."""
    runner = build(
        "retinanet", iters=2, hooks=[stability()], validate=True, options=LOGGED
    )
    seen = witnessed(runner)
    runner.val()
    runner.train()
    runner.test()
    expected = seen["RuntimeInfoHook"].events
    assert {"after_val_iter", "after_train_iter", "after_test_iter"} <= set(expected)
    assert expected.count("before_run") == 3
    for name in NAMES:
        assert without_saves(seen[name].events) == without_saves(expected), name
        # RollbackHook saves within an event, which hooks after it see later.
        assert len(seen[name].events) == len(expected), name
    assert ours(runner) == ["StabilityHook", *NAMES]
    assert "panel on" in line(runner)  # said once


def without_saves(events):
    return [event for event in events if event != "before_save_checkpoint"]


def test_members_see_a_checkpoint_that_is_loaded_before_the_run(build, tmp_path):
    hooks = [helpers.fault("parameter", [1], where=CLS), stability()]
    run = dict(precision="float32", ema=False)
    build("retinanet", iters=3, hooks=hooks, work_dir=tmp_path, **run).train()
    runner = build("retinanet", iters=1, hooks=[stability()], **run)
    seen = witnessed(runner)
    runner._resume = True
    runner.load_checkpoint(str(tmp_path / "iter_3.pth"))
    assert helpers.hook_of(runner, "RollbackHook").rollbacks == 1
    runner.train()
    for name in IN_FP32:
        assert seen[name].events.count("after_load_checkpoint") == 1, name
        assert seen[name].events.count("before_run") == 1, name


def test_a_test_run_of_the_training_config(build):
    """``tools/test.py config.py checkpoint.pth`` has the same custom_hooks."""
    runner = build("retinanet", iters=2, hooks=[stability()], validate=True)
    assert "coco/bbox_mAP" in runner.test()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])  # float16: above
def test_one_config_for_every_precision(build, precision):
    runner = build(
        "retinanet", iters=2, hooks=[stability()], precision=precision, options=LOGGED
    )
    runner.train()
    expected = IN_FP32 if precision == "float32" else NAMES
    assert ours(runner) == ["StabilityHook", *expected]
    assert len(helpers.records(runner)) == 2
    fallback = "off: precision_fallback (OptimWrapper computes in FP32"
    assert (fallback in line(runner)) == (precision == "float32")


def test_members_can_be_left_out_and_doubled(build):
    members = dict(
        cls_score=None,
        rollback=None,
        panel=False,
        head_clamp=[dict(), dict(when="always", limit=1e4, targets="backbone.layer1")],
    )
    runner = build("retinanet", iters=2, hooks=[stability(**members)], options=LOGGED)
    runner.train()
    assert ours(runner) == [
        "StabilityHook",
        "BoxSanityHook",
        "LossScaleMonitorHook",
        "GradNormMonitorHook",
        "StepGuardHook",
        "ForensicsHook",
        "BadBatchHook",
        "HeadClampHook",
        "HeadClampHook",
        "HealthHook",
        "AmpPreflightHook",
    ]
    assert line(runner) == (
        "boxes, loss_scale, grad_norm, step_guard, forensics, bad_batch, head_clamp, "
        "health, preflight on; off: cls_score (switched off), rollback (switched off), "
        "panel (switched off), precision_fallback (rollback is off, so there is "
        "nothing to count)"
    )


@pytest.mark.parametrize("hooks", [[stability(preflight=None)], helpers.MONITORS[:1]])
def test_the_ledger_tells_what_the_suite_was_given(tmp_path, hooks):
    """In a Runner without a config file nothing else does."""
    runner = small.build(tmp_path, hooks, iters=1)
    runner.train()
    (start,) = helpers.ledger(runner, "start")
    suite = hooks[0]["type"] == "amp_hooks.StabilityHook"
    assert start["suite"] == (dict(preflight=None) if suite else None)


def test_fallback_that_was_asked_for_and_cannot_be_is_an_error(build):
    hooks = [stability(precision_fallback=dict())]
    runner = build("retinanet", iters=1, hooks=hooks, precision="float32")
    with pytest.raises(ValueError, match="computes in FP32"):
        runner.train()


# --- beside others --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hooks", "words"),
    [
        (
            [dict(type="amp_hooks.RollbackHook"), stability()],
            r"RollbackHook stands beside.*rollback=dict\(\.\.\.\).*rollback=None",
        ),
        (
            [stability(), dict(type="amp_hooks.HeadClampHook", limit=50.0)],
            r"HeadClampHook stands beside.*head_clamp=None",
        ),
        ([stability(), stability(rollback=None)], "two of them"),
        ([dict(stability(), priority=60)], "priority=60 comes after.*Leave priority"),
    ],
)
def test_what_cannot_stand_beside_it_is_refused_at_the_start(build, hooks, words):
    runner = build("retinanet", iters=1, hooks=hooks)
    with pytest.raises(ValueError, match=rf"StabilityHook.*{words}"):
        runner.train()


def test_a_member_that_is_off_may_stand_beside_it(build):
    hooks = [
        stability(rollback=None, head_clamp=None),
        dict(type="amp_hooks.RollbackHook", interval=2, probation=0),
    ]
    runner = build("retinanet", iters=3, hooks=hooks)
    runner.train()
    assert helpers.hook_of(runner, "RollbackHook").interval == 2
    assert [e["iter"] for e in helpers.ledger(runner, "snapshot")] == [0, 2]


@pytest.mark.filterwarnings("ignore:torch.meshgrid")  # of mmdet, told by torch
@pytest.mark.parametrize(
    ("config", "switch", "detail"),
    [
        (
            "yolox/yolox_tiny_8xb8-300e_coco.py",
            "YOLOXModeSwitchHook",
            dict(num_last_epochs=1),
        ),
        (
            "rtmdet/rtmdet_tiny_8xb32-300e_coco.py",
            "PipelineSwitchHook",
            dict(switch_epoch=1),
        ),
    ],
    ids=["yolox", "rtmdet"],
)
def test_beside_the_custom_hooks_of_a_real_recipe(
    digits, tmp_path, config, switch, detail
):
    """mmdet's own config and our one line; images and schedule are made small."""
    cfg = small_recipe(config, digits, tmp_path)
    before = [dict(hook) for hook in cfg.custom_hooks]
    (switching,) = [h for h in cfg.custom_hooks if h.type == switch]
    switching.update(detail)
    cfg.custom_hooks += [
        stability(rollback=dict(interval=2), panel=dict(interval=1)),
        helpers.fault("gradient", 1, where="bbox_head.*.weight", value="nan"),
        helpers.fault("parameter", 2, where="bbox_head.*.weight", value="inf"),
    ]
    runner = Runner.from_cfg(cfg)
    runner.train()
    runner.visualizer.close()
    assert runner.iter == 4
    happened = [(e["event"], e["iter"]) for e in helpers.ledger(runner)]
    assert ("veto", 1) in happened
    assert ("rollback", 2) in happened
    assert math.isfinite(helpers.losses(runner)[-1])
    for name, value in helpers.state(runner).items():
        assert torch.isfinite(value).all(), name
    # MMDetection 3.0 does not remember it.
    assert getattr(helpers.hook_of(runner, switch), "_has_switched", True)
    assert [h for h in ours(runner) if h != "FaultInjectionHook"][1:] == IN_FP32
    names = [type(h).__name__ for h in runner.hooks]
    assert {h["type"] for h in before} <= set(names)
    assert names.index("RollbackHook") < names.index("EMAHook")


def small_recipe(name, digits, work_dir):
    """A config of mmdet, made small: 64-pixel digits, 2 epochs of 2 iterations."""
    cfg = get_config(f"mmdet::{name}")
    cfg.work_dir = str(work_dir)
    cfg.experiment_name = cfg.visualizer.name = osp.basename(name)
    cfg.log_level = "ERROR"
    loader = cfg.train_dataloader
    loader.update(
        batch_size=2, num_workers=0, persistent_workers=False, pin_memory=False
    )
    inner = loader.dataset.get("dataset", loader.dataset)  # YOLOX mixes images
    inner.update(
        data_root=str(digits),
        ann_file="train.json",
        data_prefix=dict(img="train/"),
        metainfo=dict(classes=tuple("0123456789")),
        indices=4,
    )
    for augment in cfg.model.data_preprocessor.batch_augments or []:
        augment.random_size_range = (64, 96)
    cfg.model.backbone.init_cfg = None  # nothing is downloaded
    cfg.model.bbox_head.num_classes = 10
    cfg.train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=2, val_interval=10)
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.param_scheduler = None
    for part in ("model", "train_dataloader", "custom_hooks"):
        cfg[part] = shrunk(cfg[part])
    return cfg


def shrunk(node):
    """Images of 64 pixels in every pipeline, and BatchNorm that a CPU has."""
    if isinstance(node, dict):
        return type(node)({key: shrunk(value) for key, value in node.items()})
    if isinstance(node, tuple) and all(isinstance(n, int) for n in node):
        return tuple(n // 10 if abs(n) >= 320 else n for n in node)
    if isinstance(node, (list, tuple)):
        return type(node)(shrunk(value) for value in node)
    return "BN" if node == "SyncBN" else node


# --- checkpoints ----------------------------------------------------------------------


LISTED = [
    dict(type=f"amp_hooks.{name}", **({"interval": 4} if "Rollback" in name else {}))
    for name in NAMES
]
IN_ONE_LINE = [stability(rollback=dict(interval=4))]


def test_both_forms_make_the_same_run_and_resume_each_other(build, tmp_path):
    """Losses, learned state and ledger, through a veto and a rollback."""
    faults = [
        helpers.fault("gradient", 1, where=CLS, value="inf"),
        helpers.fault("parameter", 3, where=CLS),
    ]
    forms = {"listed": LISTED, "one_line": IN_ONE_LINE}
    ran = {}
    for form, hooks in forms.items():
        runner = build(
            "retinanet", iters=4, hooks=[*faults, *hooks], work_dir=tmp_path / form
        )
        runner.train()
        ran[form] = runner
    listed, one_line = ran.values()
    assert repr(helpers.losses(listed)) == repr(helpers.losses(one_line))
    assert events(listed) == events(one_line)
    assert {"veto", "rollback"} <= {event["event"] for event in events(listed)}
    states = helpers.state(listed), helpers.state(one_line)
    assert states[0].keys() == states[1].keys()
    assert [n for n in states[0] if not torch.equal(states[0][n], states[1][n])] == []

    for form, hooks in zip(reversed(forms), forms.values()):
        saved = torch.load(find_latest_checkpoint(str(tmp_path / form)))["amp_hooks"]
        assert saved["RollbackHook"]["rollbacks"] == [[3, 0, "STATE_NONFINITE", 0]]
        runner = build(
            "retinanet",
            iters=5,
            hooks=hooks,
            work_dir=tmp_path / form,
            options=dict(resume=True),
        )
        runner.train()
        assert runner.iter == 5
        rollback = helpers.hook_of(runner, "RollbackHook")
        assert rollback.attempts.done == saved["RollbackHook"]["rollbacks"]
        assert rollback.total_lr_factor == 1.0  # no step had done it
        guard = helpers.hook_of(runner, "StepGuardHook")
        assert guard.vetoes == saved["StepGuardHook"]["vetoes"] >= 1
        (counter,) = helpers.hook_of(runner, "LossScaleMonitorHook").counters.values()
        assert counter.steps == saved["LossScaleMonitorHook"][""]["steps"] + 1


def events(runner):
    """The ledger, without the files, whose lines come when the disk is done.

    And without the folders of faults, which are in the run's own.
    """
    lines = [line for line in helpers.ledger(runner) if line["event"] != "snapshot"]
    return [{k: v for k, v in line.items() if k != "folder"} for line in lines]
