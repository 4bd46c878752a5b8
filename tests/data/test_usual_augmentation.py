"""Sound annotations under the augmentation of usual recipes are no news."""

from collections import Counter

import pytest
from mmdet.registry import DATASETS
from mmengine.hub import get_config
from mmengine.registry import init_default_scope
from mmengine.runner import set_random_seed

from amp_hooks import BoxSanityHook
from amp_hooks.data.box_check import check_boxes
from amp_hooks.engine.batches import boxes_of, image_size

RECIPES = {
    "LSJ": "retinanet/retinanet_r18_fpn_8xb8-amp-lsj-200e_coco",
    "mosaic, resize, crop, MixUp": "rtmdet/rtmdet_tiny_8xb32-300e_coco",
    "mosaic, affine, MixUp": "yolox/yolox_tiny_8xb8-300e_coco",
    "expand, crop": "ssd/ssd300_coco",
    "scales, crop": "detr/detr_r18_8xb2-500e_coco",
}


def tenth(node, clip):
    """The recipe for images of a tenth of the size; boxes may stick out."""
    if isinstance(node, dict):
        node = {key: tenth(value, clip) for key, value in node.items()}
        if node.get("type") in ("Mosaic", "MixUp", "RandomAffine", "CachedMosaic"):
            node["bbox_clip_border"] = clip
        if node.get("type") in ("Resize", "RandomResize"):
            node["clip_object_border"] = clip
        return node
    if isinstance(node, tuple) and all(isinstance(n, int) for n in node):
        return tuple(round(n / 10) if abs(n) >= 300 else n for n in node)
    if isinstance(node, (list, tuple)):
        return type(node)(tenth(value, clip) for value in node)
    return node


@pytest.mark.parametrize("clip", [True, False], ids=["clipped", "sticking out"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_nothing_is_found(digits, recipe, clip):
    dataset = get_config(f"mmdet::{RECIPES[recipe]}.py").train_dataloader.dataset
    inner = dataset
    while "dataset" in inner:
        inner = inner.dataset
    inner.update(
        data_root=str(digits),
        ann_file="train.json",
        data_prefix=dict(img="train/"),
        metainfo=dict(classes=tuple("0123456789")),
    )
    init_default_scope("mmdet")
    dataset = DATASETS.build(tenth(dataset.to_dict(), clip))
    set_random_seed(0)
    seen = Counter()
    for i in range(150):
        sample = dataset[i % len(dataset)]
        found, odd = check_boxes(sample, BoxSanityHook().min_size)
        assert not odd
        assert [f.words(0) for f in found] == []
        _, boxes = boxes_of(sample["data_samples"])
        height, width = image_size(sample["data_samples"])
        seen["boxes"] += len(boxes)
        seen["below a pixel"] += (
            ((boxes[:, 2:] - boxes[:, :2]).amin(1) < 1).sum().item()
        )
        beyond = (boxes[:, :2] < -1).any(1) | (boxes[:, 2] > width + 1)
        seen["sticking out"] += (beyond | (boxes[:, 3] > height + 1)).sum().item()
    assert seen["boxes"] > 100
    if not clip and "affine" in recipe:
        assert seen["sticking out"] > 5
