"""The detectors of rescue_benchmark.py and healthy_runs.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from small_detectors import R18

# mmcv has no NMS in BF16 on a CPU.
TWO_STAGES = ("faster_rcnn", "cascade_rcnn")


@dataclass(frozen=True)
class Detector:
    """One of mmdet's, made small.

    Args:
        config: Of mmdet.
        options: What makes it small and lets it learn digits.
        heads: Its classifier layers.
        conv: An early convolution.
        norm: Its BatchNorm.
        lr: At which SGD fine-tunes it well.
        pretrain_lr: At which AdamW trains it from scratch.
    """

    config: str
    options: dict[str, Any]
    heads: tuple[str, ...]
    conv: str = "backbone.conv1"
    norm: str = "backbone.bn1"
    lr: float = 0.02
    pretrain_lr: float = 1e-3


FPN = {
    **R18,
    "model.backbone.base_channels": 16,
    "model.neck.in_channels": [16, 32, 64, 128],
}
RPN = {
    "model.rpn_head.anchor_generator.scales": [4],
    "model.train_cfg.rpn_proposal.nms_pre": 100,
    "model.train_cfg.rpn_proposal.max_per_img": 64,
    "model.test_cfg.rpn.nms_pre": 100,
    "model.test_cfg.rpn.max_per_img": 50,
    "model.roi_head.bbox_roi_extractor.roi_layer.sampling_ratio": 1,
}
DETECTORS = {
    "faster_rcnn": Detector(
        "faster_rcnn/faster-rcnn_r18_fpn_8xb8-amp-lsj-200e_coco",
        {**FPN, **RPN, "model.train_cfg.rcnn.sampler.num": 32},
        ("roi_head.bbox_head.fc_cls",),
        lr=0.01,
    ),
    "cascade_rcnn": Detector(
        "cascade_rcnn/cascade-rcnn_r18_fpn_8xb8-amp-lsj-200e_coco",
        {**FPN, **RPN},
        tuple(f"roi_head.bbox_head.{i}.fc_cls" for i in range(3)),
        lr=0.01,
    ),
    "fcos": Detector(
        "fcos/fcos_r18_fpn_gn-head-center-normbbox-centeronreg-giou_"
        "8xb8-amp-lsj-200e_coco",
        {
            **FPN,
            "model.neck.start_level": 0,
            "model.bbox_head.stacked_convs": 2,
            "model.bbox_head.strides": [4, 8, 16, 32, 64],
        },
        ("bbox_head.conv_cls",),
        pretrain_lr=2e-3,
    ),
    "rtmdet": Detector(
        "rtmdet/rtmdet_tiny_8xb32-300e_coco",
        {
            "model.backbone.widen_factor": 0.25,
            "model.neck.in_channels": [64, 128, 256],
            "model.neck.out_channels": 64,
            "model.bbox_head.in_channels": 64,
            "model.bbox_head.feat_channels": 64,
            "model.bbox_head.exp_on_reg": True,  # as in the larger ones: learns faster
        },
        tuple(f"bbox_head.rtm_cls.{i}" for i in range(3)),
        "backbone.stem.0.conv",
        "backbone.stem.0.bn",
        pretrain_lr=4e-3,
    ),
    "retinanet": Detector(
        "retinanet/retinanet_r18_fpn_8xb8-amp-lsj-200e_coco",
        {
            **FPN,
            "model.neck.start_level": 0,
            "model.bbox_head.stacked_convs": 2,
            "model.bbox_head.anchor_generator.strides": [4, 8, 16, 32, 64],
        },
        ("bbox_head.retina_cls",),
        lr=0.01,
    ),
    "yolox": Detector(
        "yolox/yolox_tiny_8xb8-300e_coco",
        {
            "model.backbone.widen_factor": 0.25,
            "model.neck.in_channels": [64, 128, 256],
            "model.neck.out_channels": 64,
            "model.bbox_head.in_channels": 64,
            "model.bbox_head.feat_channels": 64,
        },
        tuple(f"bbox_head.multi_level_conv_cls.{i}" for i in range(3)),
        "backbone.stem.conv.conv",
        "backbone.stem.conv.bn",
        lr=0.001,
    ),
}
