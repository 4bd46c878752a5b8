"""mmdet's own detectors, made small, in our digits config."""

from __future__ import annotations

import copy
import functools
import os.path as osp
import uuid
from typing import Any

from mmengine.config import Config, ConfigDict
from sweep_detectors import CONFIGS, strip

ROOT = osp.dirname(osp.dirname(osp.abspath(__file__)))
DIGITS = osp.join(ROOT, "configs/digits/retinanet_r18_fpn_fp16_stability.py")
# Nothing frozen, or there would be nothing to harm.
R18 = {
    "model.backbone.base_channels": 8,
    "model.backbone.norm_eval": False,
    "model.backbone.frozen_stages": -1,
}

_read = functools.lru_cache(maxsize=None)(Config.fromfile)


def on_digits(
    config: str, options: dict[str, Any], data: str, size: int, batch: int
) -> Config:
    """Our digits config with another detector in it.

    Args:
        config: Of mmdet, without ``.py``.
        options: Changes to it, beyond an eighth of its channels.
        data: The folder of ``make_digits.py``.
        size: Of the images in pixels.
        batch: Images.
    """
    source = copy.deepcopy(_read(osp.join(CONFIGS, f"{config}.py")))
    narrow(source.model)
    source.merge_from_dict(options)
    cfg = copy.deepcopy(_read(DIGITS))
    cfg.model = ConfigDict(strip(source.model.to_dict()))
    set_classes(cfg.model, 10)
    cfg.experiment_name = cfg.visualizer.name = uuid.uuid4().hex  # both are global
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.batch_size = batch
        loader.dataset.data_root = data
        for step in loader.dataset.pipeline:
            if step.type == "Resize":
                step.scale = (size, size)
    cfg.val_evaluator.ann_file = osp.join(data, "val.json")
    cfg.test_cfg = cfg.test_dataloader = cfg.test_evaluator = None
    cfg.visualizer.vis_backends = [dict(type="LocalVisBackend")]
    return cfg


def narrow(node: Any) -> None:
    """An eighth of the usual channels."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        if isinstance(value, (dict, list, tuple)):
            narrow(value)
        elif str(key).endswith(("channels", "embed_dims", "feats")):
            node[key] = value // 8 if isinstance(value, int) and value > 95 else value


def every_box_counts(node: Any) -> None:
    """In evaluation, however low its score."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        if isinstance(value, (dict, list, tuple)):
            every_box_counts(value)
        elif key in ("score_thr", "min_bbox_size"):
            node[key] = -1


def set_classes(node: Any, number: int) -> None:
    """Every num_classes in a config."""
    for value in node.values() if isinstance(node, dict) else node:
        if isinstance(value, (dict, list, tuple)):
            set_classes(value, number)
    if isinstance(node, dict) and isinstance(node.get("num_classes"), int):
        node["num_classes"] = number
