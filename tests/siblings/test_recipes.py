"""MMYOLO's YOLOv8 with the suite: complete with one path changed, as they stand."""

import importlib

import pytest
from mmengine.config import Config

from amp_hooks.engine.runtime import Runtime
from tests import helpers
from tests.test_configs import FEW, coco, shorten, train  # noqa: F401

RECIPES = helpers.ROOT / "configs/mmyolo"
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def recipe(tmp_path, request):
    pytest.importorskip("mmyolo")
    importlib.import_module("mmyolo.models")

    def read(name, old, new):
        text = (RECIPES / f"{name}.py").read_text()
        assert text.count(f"data_root = '{old}'") == 1
        path = tmp_path / f"{name}.py"
        path.write_text(text.replace(f"'{old}'", f"'{new}/'"))
        return shorten(Config.fromfile(path), tmp_path / name)

    return read


def test_on_the_digits(recipe, digits):
    cfg = recipe("yolov8_n_fp16_digits", "data/digits/", digits)
    cfg.train_dataloader.dataset.indices = 2 * cfg.train_dataloader.batch_size
    runner = train(cfg)
    assert sorted(Runtime.of(runner).recorder.records[-1].values["logit_absmax"]) == [
        f"bbox_head.head_module.cls_preds.{i}.2" for i in range(3)
    ]
    assert [e["target_iter"] for e in helpers.ledger(runner, "rollback")] == []


def test_on_coco(recipe, coco):  # noqa: F811
    cfg = recipe("yolov8_n_fp16_500e_coco", "data/coco/", coco)
    cfg.optim_wrapper.type = "amp_hooks.CpuAmpOptimWrapper"
    cfg.train_dataloader.batch_size = 4
    small(cfg._cfg_dict)
    runner = train(cfg)
    kinds = [type(hook).__name__ for hook in runner.hooks]
    assert {"EMAHook", "PipelineSwitchHook", "YOLOv5ParamSchedulerHook"} <= set(kinds)


def small(node):
    """Images of 64 pixels, and none of Albumentations' transforms."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        if key in ("scale", "img_scale"):
            node[key] = (64, 64)
        elif key == "border":
            node[key] = (-32, -32)
        elif key in ("pipeline", "switch_pipeline"):
            node[key] = [t for t in value if t["type"] != "mmdet.Albu"]
            small(node[key])
        elif isinstance(value, (dict, list)):
            small(value)
