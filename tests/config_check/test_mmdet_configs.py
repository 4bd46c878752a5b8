"""MMDetection's own configs: what is healthy is silent, what is told is true.

All 795 that load were looked at once; these stand for their kinds.
"""

import re
from pathlib import Path

import mmdet
import pytest
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.utils import digit_version

from amp_hooks.config_check.check import check, lines_of
from amp_hooks.config_check.of_config import facts_of_config
from amp_hooks.engine.finding import numbered
from tests import helpers

CONFIGS = Path(mmdet.__file__).parent / ".mim/configs"
SILENT = """
faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py
retinanet/retinanet_r50_fpn_1x_coco.py
fcos/fcos_r50-caffe_fpn_gn-head_4xb4-1x_coco.py
ssd/ssd300_coco.py
yolo/yolov3_d53_8xb8-amp-ms-608-273e_coco.py
yolox/yolox_s_8xb8-300e_coco.py
rtmdet/rtmdet_s_8xb32-300e_coco.py
yolof/yolof_r50-c5_8xb8-1x_coco.py
detr/detr_r50_8xb2-150e_coco.py
deformable_detr/deformable-detr_r50_16xb2-50e_coco.py
dino/dino-4scale_r50_8xb2-12e_coco.py
mask2former/mask2former_r50_8xb2-lsj-50e_coco.py
grounding_dino/grounding_dino_swin-t_finetune_8xb2_20e_cat.py
mm_grounding_dino/grounding_dino_swin-t_finetune_8xb4_20e_cat.py
swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py
fcos/fcos_r50_fpn_gn-head-center-normbbox-centeronreg-giou_8xb8-amp-lsj-200e_coco.py
reid/reid_r50_8xb32-6e_mot17train80_test-mot17val20.py
simple_copy_paste/mask-rcnn_r50_fpn_rpn-2conv_4conv1fc_syncbn-all_32xb2-ssj-90k_coco.py
soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py
""".split()
TOLD = {
    # Clipping was lost when the config was moved from 2.x to 3.x.
    "guided_anchoring/ga-fast-rcnn_r50-caffe_fpn_1x_coco.py": [
        "ignored_optimizer_config",
        "ignored_data",
    ],
    "faster_rcnn/faster-rcnn_r50_fpn_amp-1x_coco.py": ["no_clip_grad"],
    "pascal_voc/faster-rcnn_r50_fpn_1x_voc0712.py": ["short_warmup"],
    # Made for 32 GPUs of 2 images.
    "strong_baselines/mask-rcnn_r50_fpn_rpn-2conv_4conv1fc_syncbn-all_lsj-100e_coco"
    ".py": ["high_lr"],
    "bytetrack/bytetrack_yolox_x_8xb4-amp-80e_crowdhuman-mot17halftrain_test-"
    "mot17halfval.py": ["no_clip_grad", "val_fp16"],
}


def names_of(path, gpus=None):
    if not path.exists() and digit_version(mmdet.__version__) < digit_version("3.3"):
        pytest.skip("this MMDetection has no such config yet")
    cfg = Config.fromfile(path)
    declared = re.search(r"_(\d+)xb\d+", str(path))
    gpus = gpus or (int(declared[1]) if declared else 8)
    return [f.name for f in check(cfg, facts_of_config(cfg, gpus))]


@pytest.mark.parametrize("name", SILENT)
def test_on_the_gpus_it_was_made_for_it_is_silent(name):
    assert names_of(CONFIGS / name) == []


@pytest.mark.parametrize("name", TOLD)
def test_what_is_told(name):
    assert names_of(CONFIGS / name) == TOLD[name]


def test_on_one_gpu_the_learning_rate_is_told():
    path = CONFIGS / "faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py"
    cfg = Config.fromfile(path)
    (finding,) = check(cfg, facts_of_config(cfg, 1))
    assert "is 8 times what linear scaling gives: 0.02 for 16 images," in finding.what
    assert finding.lines == "auto_scale_lr = dict(enable=True, base_batch_size=16)"
    cfg.auto_scale_lr.enable = True
    assert check(cfg, facts_of_config(cfg, 1)) == []


@pytest.mark.parametrize(
    ("base", "lr", "expected"),
    [
        ("yolox/yolox_s_8xb8-300e_coco.py", None, ["high_lr"]),
        ("yolox/yolox_s_8xb8-300e_coco.py", 0.01 / 8, []),  # scaled by hand
        ("retinanet/retinanet_r50_fpn_1x_coco.py", None, ["high_lr"]),
        ("retinanet/retinanet_r50_fpn_1x_coco.py", 0.01 / 8, []),
        ("dino/dino-4scale_r50_8xb2-12e_coco.py", None, ["high_lr"]),
        ("dino/dino-4scale_r50_8xb2-12e_coco.py", 0.0001 / 8, []),
    ],
)
def test_a_config_of_ones_own_on_one_gpu(base, lr, expected, tmp_path):
    path = tmp_path / "mine.py"
    text = f"_base_ = 'mmdet::{base}'\n"
    if lr is not None:
        text += f"optim_wrapper = dict(optimizer=dict(lr={lr}))\n"
    path.write_text(text)
    assert names_of(path, gpus=1) == expected
    # One that inherits it in turn is judged alike.
    (tmp_path / "again.py").write_text("_base_ = './mine.py'\nval_cfg = dict()\n")
    assert names_of(tmp_path / "again.py", gpus=1) == expected


def test_a_learning_rate_that_was_raised(tmp_path):
    """On the GPUs of the base config, and AdamW has no rule of its own."""
    path = tmp_path / "mine.py"
    base = "_base_ = 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py'\n"
    for lr, expected in ((0.0002, []), (0.01, ["high_lr"])):
        path.write_text(f"{base}optim_wrapper = dict(optimizer=dict(lr={lr}))\n")
        assert names_of(path, gpus=8) == expected


def test_a_base_batch_size_that_was_inherited_with_another_optimizer(tmp_path):
    """RTMDet's 0.004 was chosen for 256 images, and schedule_1x.py says 16."""
    base = "rtmdet/rtmdet_tiny_8xb32-300e_coco.py"
    path = tmp_path / "mine.py"
    path.write_text(f"_base_ = 'mmdet::{base}'\nauto_scale_lr = dict(enable=True)\n")
    cfg = Config.fromfile(path)
    (finding,) = check(cfg, facts_of_config(cfg, 2))
    assert finding.name == "auto_scale_base"
    assert "base_batch_size=16 was inherited, and lr=0.004 of AdamW" in finding.what
    assert "chosen for 256 images, as the name of rtmdet_l_8xb32-300e" in finding.what
    assert "for 64 images a step MMEngine makes it 0.016, where 0.001" in finding.what
    assert finding.lines == "auto_scale_lr = dict(base_batch_size=256)"
    cfg.auto_scale_lr.base_batch_size = 256
    assert check(cfg, facts_of_config(cfg, 2)) == []
    # Without scaling, on one GPU: it is not 16 images that it is right for.
    cfg.auto_scale_lr = dict(enable=False, base_batch_size=16)
    (finding,) = check(cfg, facts_of_config(cfg, 1))
    assert "is 8 times what linear scaling gives: 0.004 for 256 images" in finding.what
    assert finding.lines == "auto_scale_lr = dict(enable=True, base_batch_size=256)"


def test_a_base_batch_size_that_is_right(tmp_path):
    """Of 16 images, on 8 GPUs of 4 in the user's own file: it is there for that."""
    path = tmp_path / "mine_8xb4.py"
    base = "faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py"
    path.write_text(
        f"_base_ = 'mmdet::{base}'\nauto_scale_lr = dict(enable=True)\n"
        "train_dataloader = dict(batch_size=4)\n"
    )
    assert names_of(path) == []


PURE = """
from mmengine.hooks import CheckpointHook, EMAHook
from mmengine.optim import AmpOptimWrapper, MultiStepLR
from mmengine.runner import EpochBasedTrainLoop, ValLoop
from torch.optim import SGD

train_cfg = dict(type=EpochBasedTrainLoop, max_epochs=12)
val_cfg = dict(type=ValLoop, fp16=True)
param_scheduler = [dict(type=MultiStepLR, milestones=[8, 11])]
train_dataloader = dict(batch_size=2)
model = dict(type="RetinaNet", bbox_head=dict(type="RetinaHead"))
optim_wrapper = dict(
    type=AmpOptimWrapper,
    loss_scale=512.0,
    optimizer=dict(type=SGD, lr=0.02, momentum=0.9),
)
default_hooks = dict(checkpoint=dict(type=CheckpointHook))
custom_hooks = [dict(type=EMAHook, priority=95)]
"""


def test_a_pure_python_config(tmp_path):
    """MMEngine's other kind, with classes in the place of their names."""
    (tmp_path / "pure.py").write_text(PURE)
    assert names_of(tmp_path / "pure.py", gpus=1) == [
        "static_loss_scale",
        "no_clip_grad",
        "high_lr",
        "short_warmup",
        "ema_after_checkpoint",
        "val_fp16",
    ]


CHAIN = {
    "schedule": """
from mmengine.optim import OptimWrapper
from torch.optim import SGD

train_cfg = dict(by_epoch=True, max_epochs=12)
optim_wrapper = dict(type=OptimWrapper, optimizer=dict(type=SGD, lr=0.02))
auto_scale_lr = dict(enable=False, base_batch_size=16)
""",
    "rtmdet_l_8xb32_300e": """
from mmengine.config import read_base
from torch.optim import AdamW

with read_base():
    from .{folder}schedule import *

optim_wrapper = dict(type=OptimWrapper, optimizer=dict(type=AdamW, lr=0.004))
train_dataloader = dict(batch_size=32)
""",
    "mine": """
from mmengine.config import read_base

with read_base():
    from .{folder}rtmdet_l_8xb32_300e import *

auto_scale_lr.update(dict(enable=True))
""",
}


@pytest.mark.parametrize("folder", ["", ".base."])
def test_a_chain_of_pure_python_configs(tmp_path, folder):
    """The bases are followed as those of a text config: RTMDet's fault is found."""
    for name, text in CHAIN.items():
        place = tmp_path / ("base" if folder and name != "mine" else "own")
        place.mkdir(exist_ok=True)
        own = folder if name == "mine" else ""
        (place / f"{name}.py").write_text(text.replace("{folder}", own))
    cfg = Config.fromfile(tmp_path / "own" / "mine.py")
    (found,) = [
        finding
        for finding in check(cfg, facts_of_config(cfg, 2))
        if finding.name == "auto_scale_base"
    ]
    assert "base_batch_size=16 was inherited, and lr=0.004 of AdamW" in found.what
    assert "256 images, as the name of rtmdet_l_8xb32_300e.py says" in found.what


def test_its_lines_are_pure_python_too(tmp_path):
    (tmp_path / "pure.py").write_text(PURE)
    cfg = Config.fromfile(tmp_path / "pure.py")
    text = numbered(check(cfg, facts_of_config(cfg, 1)), lines_of(cfg))
    assert "optim_wrapper.update(dict(loss_scale='dynamic'))" in text
    assert "from mmengine.optim import LinearLR" in text
    assert "dict(type=LinearLR, start_factor=0.001" in text
    # A dump of it is a text config, though it names classes by their modules.
    cfg.dump(tmp_path / "dump.py")
    dump = Config.fromfile(tmp_path / "dump.py")
    text = numbered(check(dump, facts_of_config(dump, 1)), lines_of(dump))
    assert ".update(" not in text
    assert "optim_wrapper = dict(loss_scale='dynamic')" in text


@pytest.mark.parametrize(
    "path", sorted((helpers.ROOT / "configs/digits").glob("*.py")), ids=lambda p: p.stem
)
def test_our_own_examples(path):
    expected = ["high_lr", "short_warmup"] if "_hot" in path.stem else []
    assert names_of(path, gpus=1) == expected


def of_own_classes(tmp_path, monkeypatch, text, heads):
    """A detector for a data set whose class has its classes."""
    name = f"own_data_for_{heads}"  # a module is imported once
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / "config.py"
    path.write_text(
        "_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'\n"
        f"custom_imports = dict(imports=[{name!r}])\n"
        "train_dataloader = dict(dataset=dict(type='OwnData'))\n"
        f"model = dict(roi_head=dict(bbox_head=dict(num_classes={heads})))\n"
    )
    cfg = Config.fromfile(path)
    try:
        return [f for f in check(cfg, facts_of_config(cfg, 8)) if "class" in f.name]
    finally:
        DATASETS.module_dict.pop("OwnData", None)


@pytest.mark.parametrize(("heads", "told"), [(2, []), (80, ["num_classes"])])
def test_classes_of_a_data_set_of_ones_own(tmp_path, monkeypatch, heads, told):
    """Of no list: what the class has, as users write or edit it."""
    text = (
        "from mmdet.registry import DATASETS\nfrom mmdet.datasets import CocoDataset\n"
        "@DATASETS.register_module()\nclass OwnData(CocoDataset):\n"
        "    METAINFO = dict(classes=('a', 'b'))\n"
    )
    found = of_own_classes(tmp_path, monkeypatch, text, heads)
    assert [f.name for f in found] == told
    for finding in found:
        assert "the data set to train on has 2 classes" in finding.what


def test_classes_that_a_data_set_reads_itself(tmp_path, monkeypatch):
    """Those that it inherits are not its own."""
    text = (
        "from mmdet.registry import DATASETS\nfrom mmdet.datasets import CocoDataset\n"
        "@DATASETS.register_module()\nclass OwnData(CocoDataset):\n"
        "    def load_data_list(self):\n        self._metainfo['classes'] = ('a',)\n"
    )
    assert of_own_classes(tmp_path, monkeypatch, text, 1) == []


def test_a_hook_of_ones_own_may_warm_up(tmp_path):
    """As mmyolo's YOLOv5ParamSchedulerHook, which writes the rates itself."""
    path = tmp_path / "config.py"
    text = (
        "_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'\n"
        "param_scheduler = None\n"
    )
    names = []
    for hook in ("", "type='YOLOv5ParamSchedulerHook'", "type='ParamSchedulerHook'"):
        slot = f"default_hooks = dict(param_scheduler=dict({hook}))\n" * bool(hook)
        path.write_text(text + slot)
        names.append(names_of(path, 8))
    assert names == [["short_warmup"], [], ["short_warmup"]]
