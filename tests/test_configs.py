"""Every example config is complete: it builds and trains as it stands."""

import pytest
from mmengine.config import Config
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from amp_hooks.runtime import Runtime
from tests import helpers

EXAMPLES = sorted((helpers.ROOT / "configs/digits").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_two_iterations_and_an_evaluation(path, digits, tmp_path):
    cfg = Config.fromfile(path)
    cfg.work_dir = str(tmp_path)
    cfg.experiment_name = cfg.visualizer.name = f"test-{path.stem}"
    cfg.log_level = "ERROR"
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.data_root = str(digits)  # all that a user has to change
    cfg.val_evaluator.ann_file = str(digits / "val.json")
    cfg.train_dataloader.dataset.indices = 8
    if cfg.train_cfg.type == "IterBasedTrainLoop":
        cfg.train_cfg.max_iters = cfg.train_cfg.val_interval = 2
    else:
        cfg.train_cfg.max_epochs = cfg.train_cfg.val_interval = 1
    runner = Runner.from_cfg(cfg)
    runner.train()
    runner.visualizer.close()
    assert runner.iter == 2
    if "stability" in path.stem:
        assert len(Runtime.of(runner).recorder.records) == 2
        assert (tmp_path / "rollback" / "iter_0.pth").exists()


def test_amp_is_what_users_expect():
    cfg = Config.fromfile(helpers.ROOT / "configs/_base_/amp.py").optim_wrapper
    assert cfg.type in ("AmpOptimWrapper", "amp_hooks.CpuAmpOptimWrapper")
    assert (cfg.dtype, cfg.loss_scale) == ("float16", "dynamic")
    assert cfg.clip_grad == dict(max_norm=35, norm_type=2)


def test_watching_leaves_the_members_that_only_look():
    (hook,) = Config.fromfile(helpers.ROOT / "configs/_base_/watch.py").custom_hooks
    members = HOOKS.build(hook).members
    on = [name for name, hooks in members.items() if hooks]
    assert on == ["boxes", "loss_scale", "cls_score", "grad_norm", "panel"]


def test_the_demo_differs_by_the_suite_alone():
    stem = helpers.ROOT / "configs/digits/faster-rcnn_r18_fpn_fp16_hot"
    stock = Config.fromfile(f"{stem}.py").to_dict()
    watched = Config.fromfile(f"{stem}_watched.py").to_dict()
    guarded = Config.fromfile(f"{stem}_stability.py").to_dict()
    hooks = guarded.pop("custom_hooks")
    watched.pop("custom_hooks")
    assert stock == guarded == watched
    stability = Config.fromfile(helpers.ROOT / "configs/_base_/stability.py")
    assert hooks == stability.to_dict()["custom_hooks"]
