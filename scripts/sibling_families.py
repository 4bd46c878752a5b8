"""Model families of the packages beside MMDetection, and what is found in each.

``layers`` are those whose output feeds a classification loss, read from the heads'
source; ``predictions`` those of models that have no such loss.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Family:
    """One model of a family.

    Attributes:
        config: Path in the package's own ``configs`` folder.
        data: Of ``sibling_batches.MAKERS``.
        layers: fnmatch patterns of the classifier layers.
        predictions: fnmatch patterns of what is watched where there are none. With
            neither, scores are products of embeddings, and no layer is.
        size: Height and width of the images.
        options: Changes to the config, as for ``Config.merge_from_dict``.
        aborts: Precisions in which torch ends the process, with our hooks and without.
    """

    config: str
    data: str
    layers: tuple[str, ...] = ()
    predictions: tuple[str, ...] = ()
    size: int = 64
    options: dict[str, Any] = field(default_factory=dict)
    aborts: tuple[str, ...] = ()


def _yolo(config: str, *layers: str, **more: Any) -> Family:
    return Family(config, "boxes", layers, size=128, **more)


# YOLOv7 scales what its last convolutions give.
_YOLO_HEAD = "bbox_head.head_module."
MMYOLO = {
    "yolov5": _yolo(
        "yolov5/yolov5_n-v61_syncbn_fast_8xb16-300e_coco", f"{_YOLO_HEAD}convs_pred.*"
    ),
    "yolov6": _yolo(
        "yolov6/yolov6_n_syncbn_fast_8xb32-400e_coco", f"{_YOLO_HEAD}cls_preds.*"
    ),
    "yolov7": _yolo(
        "yolov7/yolov7_tiny_syncbn_fast_8x16b-300e_coco", f"{_YOLO_HEAD}convs_pred.*.2"
    ),
    "yolov8": _yolo(
        "yolov8/yolov8_n_syncbn_fast_8xb16-500e_coco", f"{_YOLO_HEAD}cls_preds.*.2"
    ),
    "yolox": _yolo(
        "yolox/yolox_tiny_fast_8xb8-300e_coco",
        f"{_YOLO_HEAD}multi_level_conv_cls.*",
        f"{_YOLO_HEAD}multi_level_conv_obj.*",
    ),
    "ppyoloe": _yolo(
        "ppyoloe/ppyoloe_plus_s_fast_8xb8-80e_coco", f"{_YOLO_HEAD}cls_preds.*"
    ),
    "rtmdet": _yolo(
        "rtmdet/rtmdet_tiny_syncbn_fast_8xb32-300e_coco", f"{_YOLO_HEAD}rtm_cls.*"
    ),
}


def _seg(config: str, *layers: str, size: int = 64, **options: Any) -> Family:
    found = layers or ("decode_head.conv_seg", "auxiliary_head.conv_seg")
    return Family(config, "pixels", found, size=size, options=options)


_R18 = {
    "model.backbone.depth": 18,
    "model.decode_head.in_channels": 512,
    "model.auxiliary_head.in_channels": 256,
}
_CITY = "_4xb2-40k_cityscapes-512x1024"
MMSEG = {
    "fcn": _seg(f"fcn/fcn_r50-d8{_CITY}", **_R18),
    "pspnet": _seg(f"pspnet/pspnet_r50-d8{_CITY}", **_R18),
    "deeplabv3": _seg(f"deeplabv3/deeplabv3_r50-d8{_CITY}", **_R18),
    "ann": _seg(f"ann/ann_r50-d8{_CITY}"),
    "apcnet": _seg(f"apcnet/apcnet_r50-d8{_CITY}", **_R18),
    "ccnet": _seg(f"ccnet/ccnet_r50-d8{_CITY}", **_R18),
    "danet": _seg(
        f"danet/danet_r50-d8{_CITY}",
        "decode_head.pam_conv_seg",
        "decode_head.cam_conv_seg",
        "decode_head.conv_seg",
        "auxiliary_head.conv_seg",
        **_R18,
    ),
    "dmnet": _seg(f"dmnet/dmnet_r50-d8{_CITY}", **_R18),
    "dnlnet": _seg(f"dnlnet/dnl_r50-d8{_CITY}", **_R18),
    "gcnet": _seg(f"gcnet/gcnet_r50-d8{_CITY}", **_R18),
    "isanet": _seg(f"isanet/isanet_r50-d8{_CITY}", **_R18),
    "nonlocal_net": _seg(f"nonlocal_net/nonlocal_r50-d8{_CITY}", **_R18),
    "encnet": _seg(
        f"encnet/encnet_r50-d8{_CITY}",
        "decode_head.conv_seg",
        "decode_head.se_layer",
        "auxiliary_head.conv_seg",
    ),
    "emanet": _seg("emanet/emanet_r50-d8_4xb2-80k_cityscapes-512x1024"),
    "upernet": _seg(f"upernet/upernet_r50{_CITY}"),
    "point_rend": _seg(
        "point_rend/pointrend_r50_4xb2-80k_cityscapes-512x1024",
        "decode_head.0.conv_seg",
        "decode_head.1.fc_seg",
        size=128,
    ),
    "ocrnet": _seg(
        "ocrnet/ocrnet_hr18s_4xb2-40k_cityscapes-512x1024", "decode_head.[01].conv_seg"
    ),
    "hrnet": _seg(
        "hrnet/fcn_hr18s_4xb2-40k_cityscapes-512x1024", "decode_head.conv_seg"
    ),
    "unet": _seg("unet/unet-s5-d16_fcn_4xb4-40k_drive-64x64"),
    "sem_fpn": _seg(
        "sem_fpn/fpn_r50_4xb2-80k_cityscapes-512x1024", "decode_head.conv_seg"
    ),
    "segformer": _seg(
        "segformer/segformer_mit-b0_8xb1-160k_cityscapes-1024x1024",
        "decode_head.conv_seg",
    ),
    "segnext": _seg(
        "segnext/segnext_mscan-t_1xb16-adamw-160k_ade20k-512x512",
        "decode_head.conv_seg",
    ),
    "segmenter": Family(
        "segmenter/segmenter_vit-t_mask_8xb1-160k_ade20k-512x512", "pixels"
    ),
    "stdc": _seg(
        "stdc/stdc1_4xb12-80k_cityscapes-512x1024",
        "decode_head.conv_seg",
        "auxiliary_head.[0-2].conv_seg",
    ),
    "bisenetv2": _seg(
        "bisenetv2/bisenetv2_fcn_4xb4-160k_cityscapes-1024x1024",
        "decode_head.conv_seg",
        "auxiliary_head.[0-3].conv_seg",
    ),
    "fastscnn": _seg(
        "fastscnn/fast_scnn_8xb4-160k_cityscapes-512x1024",
        "decode_head.conv_seg",
        "auxiliary_head.[01].conv_seg",
        size=128,
    ),
    "mobilenet_v3": _seg(
        "mobilenet_v3/mobilenet-v3-d8-s_lraspp_4xb4-320k_cityscapes-512x1024",
        "decode_head.conv_seg",
        size=512,
    ),
    "pidnet": _seg(
        "pidnet/pidnet-s_2xb6-120k_1024x1024-cityscapes",
        "decode_head.[ipd]_cls_seg",
        "decode_head.[ipd]_head.conv2",
        "decode_head.conv_seg",
        # At 16 its gradients overflow FP16 on random images, with us and without.
        loss_scale=2.0**-6,
    ),
    "mask2former": Family(
        "mask2former/mask2former_r50_8xb2-90k_cityscapes-512x1024",
        "pixels",
        ("decode_head.cls_embed",),
        size=128,
    ),
}


def _label(config: str, *layers: str, size: int = 64, **options: Any) -> Family:
    return Family(config, "label", layers or ("head.fc",), size=size, options=options)


def _views(config: str, *predictions: str, **more: Any) -> Family:
    return Family(config, "views", (), predictions, **{"size": 256, **more})


_VIT = ("head.layers.head",)
MMPRETRAIN = {
    "resnet": _label("resnet/resnet18_8xb16_cifar10"),
    "resnext": _label("resnext/resnext50-32x4d_8xb32_in1k"),
    "seresnet": _label("seresnet/seresnet50_8xb32_in1k"),
    "densenet": _label("densenet/densenet121_4xb256_in1k"),
    "vgg": _label("vgg/vgg11bn_8xb32_in1k", "backbone.classifier.6", size=224),
    "mobilenet_v2": _label("mobilenet_v2/mobilenet-v2_8xb32_in1k"),
    "mobilenet_v3": _label(
        "mobilenet_v3/mobilenet-v3-small_8xb128_in1k", "head.layers.1.fc"
    ),
    "shufflenet_v2": _label("shufflenet_v2/shufflenet-v2-1x_16xb64_in1k"),
    "efficientnet": _label("efficientnet/efficientnet-b0_8xb32_in1k"),
    "regnet": _label("regnet/regnetx-400mf_8xb128_in1k"),
    "repvgg": _label("repvgg/repvgg-A0_8xb32_in1k"),
    "res2net": _label("res2net/res2net50-w14-s8_8xb32_in1k"),
    "convnext": _label("convnext/convnext-tiny_32xb128_in1k"),
    "swin_transformer": _label("swin_transformer/swin-tiny_16xb64_in1k", size=224),
    "vision_transformer": _label(
        "vision_transformer/vit-base-p32_64xb64_in1k", *_VIT, size=224
    ),
    "deit": _label("deit/deit-tiny_4xb256_in1k", *_VIT, size=224),
    "mlp_mixer": _label("mlp_mixer/mlp-mixer-base-p16_64xb64_in1k", size=224),
    "poolformer": _label("poolformer/poolformer-s12_32xb128_in1k"),
    "van": _label("van/van-tiny_8xb128_in1k"),
    "mae": _views(
        "mae/mae_vit-base-p16_8xb512-amp-coslr-300e_in1k", "neck.decoder_pred"
    ),
    "simmim": _views(
        "simmim/simmim_swin-base-w6_16xb128-amp-coslr-100e_in1k-192px", "neck.decoder.0"
    ),
    "simclr": _views(
        "simclr/simclr_resnet50_16xb256-coslr-200e_in1k",
        options={"model.backbone.depth": 18, "model.neck.in_channels": 512},
    ),
    "mocov2": _views(
        "mocov2/mocov2_resnet50_8xb32-coslr-200e_in1k",
        options={
            "model.backbone.depth": 18,
            "model.neck.in_channels": 512,
            "model.queue_len": 64,
        },
    ),
    "simsiam": _views(
        "simsiam/simsiam_resnet50_8xb32-coslr-200e_in1k",
        "head.predictor.fc1",
        options={"model.backbone.depth": 18, "model.neck.in_channels": 512},
    ),
    "byol": _views(
        "byol/byol_resnet50_16xb256-coslr-200e_in1k",
        "head.predictor.fc1",
        options={"model.backbone.depth": 18, "model.neck.in_channels": 512},
    ),
}


def _pose(config: str, *predictions: str, **more: Any) -> Family:
    return Family(config, "keypoints", (), predictions, **{"size": 256, **more})


_BODY = "body_2d_keypoint/"
MMPOSE = {
    "heatmap": _pose(
        f"{_BODY}topdown_heatmap/coco/td-hm_mobilenetv2_8xb64-210e_coco-256x192",
        "head.final_layer",
    ),
    "vitpose": _pose(
        f"{_BODY}topdown_heatmap/coco/td-hm_ViTPose-small_8xb64-210e_coco-256x192",
        "head.final_layer",
    ),
    "hrnet": _pose(
        f"{_BODY}topdown_heatmap/coco/td-hm_hrnet-w32_8xb64-210e_coco-256x192",
        "head.final_layer",
    ),
    "simcc": _pose(
        f"{_BODY}simcc/coco/simcc_mobilenetv2_wo-deconv-8xb64-210e_coco-256x192",
        "head.mlp_head_[xy]",
    ),
    "regression": _pose(
        f"{_BODY}topdown_regression/coco/td-reg_mobilenetv2_rle-pretrained-8xb64-210e"
        "_coco-256x192",
        "head.fc",
    ),
    "integral": _pose(
        f"{_BODY}integral_regression/coco/ipr_res50_8xb64-210e_coco-256x256",
        "head.simplebaseline_head.final_layer",
    ),
    "rtmpose": _pose(
        f"{_BODY}rtmpose/coco/rtmpose-t_8xb256-420e_coco-256x192", "head.cls_[xy]"
    ),
}


def _rotated(config: str, *layers: str, **more: Any) -> Family:
    return Family(config, "rotated boxes", layers, size=128, **more)


_TWO = ("rpn_head.rpn_cls", "roi_head.bbox_head.fc_cls")
_RETINA = "bbox_head.retina_cls"
MMROTATE = {
    "rotated_retinanet": _rotated(
        "rotated_retinanet/rotated-retinanet-rbox-le90_r50_fpn_1x_dota", _RETINA
    ),
    "rotated_faster_rcnn": _rotated(
        "rotated_faster_rcnn/rotated-faster-rcnn-le90_r50_fpn_1x_dota", *_TWO
    ),
    "oriented_rcnn": _rotated(
        "oriented_rcnn/oriented-rcnn-le90_r50_fpn_1x_dota", *_TWO
    ),
    "rotated_fcos": _rotated(
        "rotated_fcos/rotated-fcos-le90_r50_fpn_kld_1x_dota", "bbox_head.conv_cls"
    ),
    "rotated_atss": _rotated(
        "rotated_atss/rotated-atss-le90_r50_fpn_1x_dota", "bbox_head.atss_cls"
    ),
    "rotated_rtmdet": _rotated(
        "rotated_rtmdet/rotated_rtmdet_tiny-3x-dota", "bbox_head.rtm_cls.*"
    ),
    "gwd": _rotated("gwd/rotated-retinanet-hbox-oc_r50_fpn_gwd_1x_dota", _RETINA),
    "kld": _rotated("kld/rotated-retinanet-rbox-le90_r50_fpn_kld_1x_dota", _RETINA),
    "csl": _rotated(
        "csl/rotated-retinanet-rbox-le90_r50_fpn_csl-gaussian_amp-1x_dota", _RETINA
    ),
    "roi_trans": _rotated(
        "roi_trans/roi-trans-le90_r50_fpn_1x_dota",
        "rpn_head.rpn_cls",
        "roi_head.bbox_head.[01].fc_cls",
    ),
    "gliding_vertex": _rotated(
        "gliding_vertex/gliding-vertex-qbox_r50_fpn_1x_dota", *_TWO
    ),
    "s2anet": _rotated(
        "s2anet/s2anet-le135_r50_fpn_1x_dota",
        "bbox_head_init.retina_cls",
        "bbox_head_refine.0.retina_cls",
    ),
}


def _clip(config: str, *layers: str, size: int = 64, **options: Any) -> Family:
    found = layers or ("cls_head.fc_cls",)
    return Family(config, "clip", found, size=size, options=options)


_K400 = "_kinetics400-rgb"
_FRAMES = {"of_clips": False, "frames": (1, 8)}
MMACTION = {
    "tsn": _clip(
        f"recognition/tsn/tsn_imagenet-pretrained-r50_8xb32-1x1x8-100e{_K400}",
        **_FRAMES,
    ),
    "slowonly": _clip(f"recognition/slowonly/slowonly_r50_8xb16-4x16x1-256e{_K400}"),
    "slowfast": Family(
        f"recognition/slowfast/slowfast_r50_8xb8-4x16x1-256e{_K400}",
        "clip",
        ("cls_head.fc_cls",),
        options={"frames": (1, 32)},
        aborts=("bfloat16",),
    ),
    "i3d": _clip(
        f"recognition/i3d/i3d_imagenet-pretrained-r50_8xb8-32x2x1-100e{_K400}"
    ),
    "r2plus1d": _clip(
        f"recognition/r2plus1d/r2plus1d_r34_8xb8-8x8x1-180e{_K400}",
        **{"model.backbone.norm_cfg.type": "BN3d"},
    ),
    "stgcn": Family(
        "skeleton/stgcn/stgcn_8xb16-joint-u100-80e_ntu60-xsub-keypoint-2d",
        "skeleton",
        ("cls_head.fc",),
    ),
}


def _text(config: str, *layers: str, data: str = "text", **more: Any) -> Family:
    return Family(config, data, layers, **{"size": 128, **more})


MMOCR = {
    "dbnet": _text(
        "textdet/dbnet/dbnet_resnet18_fpnc_1200e_icdar2015",
        "det_head.binarize.6",
        "det_head.threshold.6",
        data="text boxes",
    ),
    "crnn": _text("textrecog/crnn/crnn_mini-vgg_5e_mj", "decoder.decoder.1.embedding"),
    "sar": _text(
        "textrecog/sar/sar_resnet31_parallel-decoder_5e_st-sub_mj-sub_sa_real",
        "decoder.prediction",
    ),
    "satrn": _text(
        "textrecog/satrn/satrn_shallow-small_5e_st_mj", "decoder.classifier"
    ),
    "nrtr": _text(
        "textrecog/nrtr/nrtr_modality-transform_6e_st_mj", "decoder.classifier"
    ),
    "aster": _text("textrecog/aster/aster_resnet45_6e_st_mj", "decoder.fc"),
    "master": _text("textrecog/master/master_resnet31_12e_st_mj_sa", "decoder.cls"),
    "svtr": _text("textrecog/svtr/svtr-tiny_20e_st_mj", "decoder.decoder"),
}


def _scan(config: str, *layers: str, **options: Any) -> Family:
    return Family(config, "scan", layers, options=options)


def _camera(config: str, *layers: str, **options: Any) -> Family:
    return Family(config, "camera", layers, size=128, options=options)


_3D = "bbox_head.conv_cls"
_NUSCENES = {"box_dims": 9}  # with velocities
MMDET3D = {
    "pointpillars": _scan(
        "pointpillars/pointpillars_hv_secfpn_8xb6-160e_kitti-3d-3class", _3D
    ),
    "free_anchor": _scan(
        "free_anchor/pointpillars_hv_fpn_head-free-anchor_sbn-all_8xb4-2x_nus-3d",
        "pts_bbox_head.conv_cls",
        "pts_bbox_head.conv_dir_cls",
        **_NUSCENES,
    ),
    "ssn": _scan(
        "ssn/ssn_hv_secfpn_sbn-all_16xb2-2x_nus-3d",
        "pts_bbox_head.heads.*.conv_cls",
        **_NUSCENES,
    ),
    "centerpoint": _scan(
        "centerpoint/centerpoint_pillar02_second_secfpn_8xb4-cyclic-20e_nus-3d",
        "pts_bbox_head.task_heads.*.heatmap.1",
        **_NUSCENES,
        point_dims=5,
        loss_scale=2.0**-6,  # as for PIDNet
    ),
    "fcos3d": _camera(
        "fcos3d/fcos3d_r101-caffe-dcn_fpn_head-gn_8xb2-1x_nus-mono3d",
        _3D,
        "bbox_head.conv_attr",
        **_NUSCENES,
    ),
    "pgd": _camera("pgd/pgd_r101-caffe_fpn_head-gn_4xb3-4x_kitti-mono3d", _3D),
    "smoke": _camera("smoke/smoke_dla34_dlaneck_gn-all_4xb8-6x_kitti-mono3d", _3D),
    "second": _scan("second/second_hv_secfpn_8xb6-80e_kitti-3d-3class", _3D),
    "votenet": _scan("votenet/votenet_8xb16_sunrgbd-3d", "bbox_head.conv_pred.*"),
}

SIBLINGS: dict[str, dict[str, Family]] = {
    "mmyolo": MMYOLO,
    "mmseg": MMSEG,
    "mmpretrain": MMPRETRAIN,
    "mmpose": MMPOSE,
    "mmrotate": MMROTATE,
    "mmaction": MMACTION,
    "mmocr": MMOCR,
    "mmdet3d": MMDET3D,
}
