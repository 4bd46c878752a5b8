"""mmdet 3.3.0's detector families, and the layers that classify in each.

The layers were read from the heads' source: those whose output feeds a classification
loss. Objectness and heatmaps count, and so do semantic maps (one class per pixel);
boxes, masks, centerness and embeddings do not.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

RPN = "rpn_head.rpn_cls"
BOX = "roi_head.bbox_head.fc_cls"
CASCADE = "roi_head.bbox_head.[0-2].fc_cls"
TWO_STAGE = (RPN, BOX)
RETINA = ("bbox_head.retina_cls",)

BERT = "needs the BERT weights and the transformers package"
MMPRETRAIN = "needs the mmpretrain package for its backbone"
GPU = "needs an operator that mmcv has for GPUs only"

NO_TORCHVISION = {"model.roi_head.bbox_roi_extractor.roi_layer.use_torchvision": False}
# Without trained weights and with BatchNorm in evaluation mode, these grow to infinity.
LIVE_NORMS = {"model.backbone.norm_eval": False}
# A small image has fewer places than these detectors have queries.
FEW_QUERIES = {"model.num_queries": 50}


@dataclass
class Family:
    """One detector of a family, and what is to be found in it.

    Attributes:
        config: Path in mmdet's own ``configs`` folder.
        layers: fnmatch patterns over module names; together they match exactly the
            classifier layers.
        size: Height and width of the random images.
        semantic: Stride of the semantic map, 0 for none.
        data: What else a sample holds: 'proposals' or 'branches'.
        options: Changes to the config, as for ``Config.merge_from_dict``.
        cannot: Why it is not tried; empty if it is.
    """

    config: str
    layers: tuple[str, ...] = ()
    size: int = 128
    semantic: int = 0
    data: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    cannot: str = ""


F = Family
FAMILIES: dict[str, Family] = {
    # two-stage
    "faster_rcnn": F(
        "faster_rcnn/faster-rcnn_r18_fpn_8xb8-amp-lsj-200e_coco", TWO_STAGE
    ),
    "faster_rcnn_c4": F("faster_rcnn/faster-rcnn_r50-caffe_c4-1x_coco", TWO_STAGE),
    "fast_rcnn": F("fast_rcnn/fast-rcnn_r50_fpn_1x_coco", (BOX,), data="proposals"),
    "rpn": F("rpn/rpn_r50_fpn_1x_coco", ("bbox_head.rpn_cls",)),
    "mask_rcnn": F("mask_rcnn/mask-rcnn_r18_fpn_8xb8-amp-lsj-200e_coco", TWO_STAGE),
    "ms_rcnn": F("ms_rcnn/ms-rcnn_r50_fpn_1x_coco", TWO_STAGE),
    "point_rend": F("point_rend/point-rend_r50-caffe_fpn_ms-1x_coco", TWO_STAGE),
    "grid_rcnn": F("grid_rcnn/grid-rcnn_r50_fpn_gn-head_1x_coco", TWO_STAGE),
    "double_heads": F("double_heads/dh-faster-rcnn_r50_fpn_1x_coco", TWO_STAGE),
    "dynamic_rcnn": F("dynamic_rcnn/dynamic-rcnn_r50_fpn_1x_coco", TWO_STAGE),
    "libra_rcnn": F("libra_rcnn/libra-faster-rcnn_r50_fpn_1x_coco", TWO_STAGE),
    "libra_retinanet": F("libra_rcnn/libra-retinanet_r50_fpn_1x_coco", RETINA),
    "pisa": F("pisa/faster-rcnn_r50_fpn_pisa_1x_coco", TWO_STAGE),
    "pisa_retinanet": F("pisa/retinanet-r50_fpn_pisa_1x_coco", RETINA),
    "pisa_ssd": F("pisa/ssd300_pisa_coco", ("bbox_head.cls_convs.[0-5].0",), size=300),
    "sabl": F("sabl/sabl-faster-rcnn_r50_fpn_1x_coco", TWO_STAGE),
    "sabl_cascade": F("sabl/sabl-cascade-rcnn_r50_fpn_1x_coco", (RPN, CASCADE)),
    "sabl_retinanet": F("sabl/sabl-retinanet_r50_fpn_1x_coco", RETINA),
    # Without this, TridentConv starts from whatever is in memory.
    "tridentnet": F(
        "tridentnet/tridentnet_r50-caffe_1x_coco",
        TWO_STAGE,
        options={
            "model.backbone.init_cfg": dict(
                _delete_=True, type="Kaiming", layer=["Conv2d", "TridentConv"]
            )
        },
    ),
    "crowddet": F(
        "crowddet/crowddet-rcnn_r50_fpn_8xb2-30e_crowdhuman",
        (RPN, "roi_head.bbox_head.fc_cls.[01]"),
        options=NO_TORCHVISION,
    ),
    "crowddet_refine": F(
        "crowddet/crowddet-rcnn_refine_r50_fpn_8xb2-30e_crowdhuman",
        (RPN, "roi_head.bbox_head.fc_cls.[01]", "roi_head.bbox_head.fc_cls_ref.[01]"),
        options=NO_TORCHVISION,
    ),
    "lvis": F("lvis/mask-rcnn_r50_fpn_sample1e-3_ms-1x_lvis-v1", TWO_STAGE),
    "seesaw_loss": F(
        "seesaw_loss/mask-rcnn_r50_fpn_seesaw-loss_random-ms-2x_lvis-v1", TWO_STAGE
    ),
    "openimages": F("openimages/faster-rcnn_r50_fpn_32xb2-1x_openimages", TWO_STAGE),
    "objects365": F("objects365/faster-rcnn_r50_fpn_16xb4-1x_objects365v1", TWO_STAGE),
    "pascal_voc": F("pascal_voc/faster-rcnn_r50_fpn_1x_voc0712", TWO_STAGE),
    "cityscapes": F("cityscapes/mask-rcnn_r50_fpn_1x_cityscapes", TWO_STAGE),
    "deepfashion": F("deepfashion/mask-rcnn_r50_fpn_15e_deepfashion", TWO_STAGE),
    "panoptic_fpn": F(
        "panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco",
        (*TWO_STAGE, "semantic_head.conv_logits"),
        semantic=1,
    ),
    # cascades
    "cascade_rcnn": F("cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco", (RPN, CASCADE)),
    "cascade_mask_rcnn": F(
        "cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco", (RPN, CASCADE)
    ),
    "htc": F(
        "htc/htc_r50_fpn_1x_coco",
        (RPN, CASCADE, "roi_head.semantic_head.conv_logits"),
        semantic=8,
    ),
    "htc_no_semantic": F("htc/htc-without-semantic_r50_fpn_1x_coco", (RPN, CASCADE)),
    "scnet": F(
        "scnet/scnet_r50_fpn_1x_coco",
        (
            RPN,
            CASCADE,
            "roi_head.semantic_head.conv_logits",
            "roi_head.glbctx_head.fc",
        ),
        semantic=8,
    ),
    "detectors": F("detectors/detectors_cascade-rcnn_r50_1x_coco", (RPN, CASCADE)),
    "cascade_rpn": F(
        "cascade_rpn/cascade-rpn_faster-rcnn_r50-caffe_fpn_1x_coco",
        ("rpn_head.stages.1.rpn_cls", BOX),
    ),
    "v3det": F(
        "v3det/cascade_rcnn_r50_fpn_8x4_sample1e-3_mstrain_v3det_2x", (RPN, CASCADE)
    ),
    # dense, with anchors
    "retinanet": F("retinanet/retinanet_r18_fpn_1x_coco", RETINA),
    "ghm": F("ghm/retinanet_r50_fpn_ghm-1x_coco", RETINA),
    "free_anchor": F("free_anchor/freeanchor_r50_fpn_1x_coco", RETINA),
    "fsaf": F("fsaf/fsaf_r50_fpn_1x_coco", RETINA),
    "nas_fpn": F("nas_fpn/retinanet_r50_nasfpn_crop640-50e_coco", RETINA),
    "guided_anchoring": F(
        "guided_anchoring/ga-retinanet_r50_fpn_1x_coco",
        ("bbox_head.retina_cls", "bbox_head.conv_loc"),
    ),
    "ga_faster_rcnn": F(
        "guided_anchoring/ga-faster-rcnn_r50_fpn_1x_coco",
        ("rpn_head.conv_cls", "rpn_head.conv_loc", BOX),
    ),
    "atss": F("atss/atss_r18_fpn_8xb8-amp-lsj-200e_coco", ("bbox_head.atss_cls",)),
    "dyhead": F("dyhead/atss_r50_fpn_dyhead_1x_coco", ("bbox_head.atss_cls",)),
    "ddod": F("ddod/ddod_r50_fpn_1x_coco", ("bbox_head.atss_cls",), size=320),
    "paa": F(
        "paa/paa_r50_fpn_1x_coco",
        ("bbox_head.atss_cls",),
        # The losses of a random network are too much alike for 'diag'.
        options={"model.bbox_head.covariance_type": "full"},
    ),
    "gfl": F("gfl/gfl_r50_fpn_1x_coco", ("bbox_head.gfl_cls",)),
    "tood": F(
        "tood/tood_r50_fpn_1x_coco",
        ("bbox_head.tood_cls", "bbox_head.cls_prob_module.2"),
    ),
    "ld": F(
        "ld/ld_r18-gflv1-r101_fpn_1x_coco",
        ("bbox_head.gfl_cls",),
        options={"model.teacher_ckpt": None},
    ),
    "lad": F(
        "lad/lad_r50-paa-r101_fpn_2xb8_coco_1x",
        ("bbox_head.atss_cls",),
        options={"model.teacher_ckpt": None},
    ),
    "ssd": F("ssd/ssd300_coco", ("bbox_head.cls_convs.[0-5].0",), size=300),
    "ssdlite": F(
        "ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco",
        ("bbox_head.cls_convs.[0-5].1",),
        size=320,
    ),
    "yolact": F(
        "yolact/yolact_r50_1xb8-55e_coco",
        ("bbox_head.conv_cls", "mask_head.segm_branch.segm_conv"),
    ),
    "yolof": F(
        "yolof/yolof_r50-c5_8xb8-1x_coco",
        ("bbox_head.cls_score", "bbox_head.object_pred"),
    ),
    # dense, without anchors
    "fcos": F(
        "fcos/fcos_r18_fpn_gn-head-center-normbbox-centeronreg-giou_8xb8-amp-lsj-200e_coco",
        ("bbox_head.conv_cls",),
    ),
    "nas_fcos": F(
        "nas_fcos/nas-fcos_r50-caffe_fpn_nashead-gn-head_4xb4-1x_coco",
        ("bbox_head.conv_cls",),
    ),
    "foveabox": F("foveabox/fovea_r50_fpn_4xb4-1x_coco", ("bbox_head.conv_cls",)),
    # Its scores are multiplied by an implicit objectness, called centerness here.
    "autoassign": F(
        "autoassign/autoassign_r50-caffe_fpn_1x_coco",
        ("bbox_head.conv_cls", "bbox_head.conv_centerness"),
    ),
    "vfnet": F("vfnet/vfnet_r50_fpn_1x_coco", ("bbox_head.vfnet_cls",)),
    "reppoints": F(
        "reppoints/reppoints-moment_r50_fpn_1x_coco", ("bbox_head.reppoints_cls_out",)
    ),
    "centernet": F(
        "centernet/centernet_r18_8xb16-crop512-140e_coco",
        ("bbox_head.heatmap_head.2",),
    ),
    "centernet_update": F(
        "centernet/centernet-update_r18_fpn_8xb8-amp-lsj-200e_coco",
        ("bbox_head.conv_cls",),
    ),
    "cornernet": F(
        "cornernet/cornernet_hourglass104_8xb6-210e-mstest_coco",
        ("bbox_head.[tb][lr]_heat.[01].1.conv",),
        options={"model.backbone.stage_blocks": (1, 1, 1, 1, 1, 1)},
    ),
    "centripetalnet": F(
        "centripetalnet/centripetalnet_hourglass104_16xb6-crop511-210e-mstest_coco",
        ("bbox_head.[tb][lr]_heat.[01].1.conv",),
        options={"model.backbone.stage_blocks": (1, 1, 1, 1, 1, 1)},
    ),
    "rtmdet": F("rtmdet/rtmdet_tiny_8xb32-300e_coco", ("bbox_head.rtm_cls.[0-2]",)),
    "rtmdet_ins": F(
        "rtmdet/rtmdet-ins_tiny_8xb32-300e_coco", ("bbox_head.rtm_cls.[0-2]",)
    ),
    "yolo": F("yolo/yolov3_d53_8xb8-320-273e_coco", ("bbox_head.convs_pred.[0-2]",)),
    "yolo_mobilenet": F(
        "yolo/yolov3_mobilenetv2_8xb24-320-300e_coco", ("bbox_head.convs_pred.[0-2]",)
    ),
    "yolox": F(
        "yolox/yolox_nano_8xb8-300e_coco",
        (
            "bbox_head.multi_level_conv_cls.[0-2]",
            "bbox_head.multi_level_conv_obj.[0-2]",
        ),
    ),
    # instance and panoptic segmentation
    "solo": F("solo/solo_r18_fpn_8xb8-lsj-200e_coco", ("mask_head.conv_cls",)),
    "decoupled_solo": F("solo/decoupled-solo_r50_fpn_1x_coco", ("mask_head.conv_cls",)),
    "solov2": F("solov2/solov2-light_r18_fpn_ms-3x_coco", ("mask_head.conv_cls",)),
    "condinst": F(
        "condinst/condinst_r50_fpn_ms-poly-90k_coco_instance", ("bbox_head.conv_cls",)
    ),
    "boxinst": F("boxinst/boxinst_r50_fpn_ms-90k_coco", cannot="needs scikit-image"),
    "maskformer": F(
        "maskformer/maskformer_r50_ms-16xb1-75e_coco",
        ("panoptic_head.cls_embed",),
        semantic=1,
    ),
    "mask2former": F(
        "mask2former/mask2former_r50_8xb2-lsj-50e_coco", ("panoptic_head.cls_embed",)
    ),
    "mask2former_panoptic": F(
        "mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic",
        ("panoptic_head.cls_embed",),
        semantic=1,
    ),
    "queryinst": F(
        "queryinst/queryinst_r50_fpn_1x_coco", ("roi_head.bbox_head.[0-5].fc_cls",)
    ),
    "sparse_rcnn": F(
        "sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco", ("roi_head.bbox_head.[0-5].fc_cls",)
    ),
    # DETR and its kin
    "detr": F("detr/detr_r18_8xb2-500e_coco", ("bbox_head.fc_cls",)),
    "conditional_detr": F(
        "conditional_detr/conditional-detr_r50_8xb2-50e_coco", ("bbox_head.fc_cls",)
    ),
    "dab_detr": F("dab_detr/dab-detr_r50_8xb2-50e_coco", ("bbox_head.fc_cls",)),
    "deformable_detr": F(
        "deformable_detr/deformable-detr_r50_16xb2-50e_coco",
        ("bbox_head.cls_branches.0",),
    ),
    "deformable_detr_two_stage": F(
        "deformable_detr/deformable-detr-refine-twostage_r50_16xb2-50e_coco",
        ("bbox_head.cls_branches.[0-6]",),
    ),
    "dino": F(
        "dino/dino-4scale_r50_8xb2-12e_coco",
        ("bbox_head.cls_branches.[0-6]",),
        options=FEW_QUERIES,
    ),
    "ddq": F(
        "ddq/ddq-detr-4scale_r50_8xb2-12e_coco",
        ("bbox_head.cls_branches.[0-7]", "bbox_head.aux_cls_branches.[0-5]"),
        options=FEW_QUERIES,
    ),
    # backbones and necks
    "carafe": F("carafe/faster-rcnn_r50_fpn-carafe_1x_coco", cannot=GPU),
    "dcn": F("dcn/faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco", TWO_STAGE),
    "dcnv2": F("dcnv2/faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco", TWO_STAGE),
    "efficientnet": F("efficientnet/retinanet_effb3_fpn_8xb4-crop896-1x_coco", RETINA),
    "empirical_attention": F(
        "empirical_attention/faster-rcnn_r50-attn1111_fpn_1x_coco", TWO_STAGE
    ),
    "fpg": F("fpg/retinanet_r50_fpg-chn128_crop640_50e_coco", RETINA),
    "gcnet": F(
        "gcnet/mask-rcnn_r50-gcb-r4-c3-c5_fpn_1x_coco",
        TWO_STAGE,
    ),
    "gn": F("gn/mask-rcnn_r50_fpn_gn-all_2x_coco", TWO_STAGE),
    "gn+ws": F("gn+ws/faster-rcnn_r50_fpn_gn-ws-all_1x_coco", TWO_STAGE),
    "groie": F("groie/faste-rcnn_r50_fpn_groie_1x_coco", TWO_STAGE),
    "hrnet": F("hrnet/faster-rcnn_hrnetv2p-w18-1x_coco", TWO_STAGE, options=LIVE_NORMS),
    "pafpn": F("pafpn/faster-rcnn_r50_pafpn_1x_coco", TWO_STAGE),
    "pvt": F("pvt/retinanet_pvt-t_fpn_1x_coco", RETINA),
    "regnet": F("regnet/faster-rcnn_regnetx-400MF_fpn_ms-3x_coco", TWO_STAGE),
    "res2net": F(
        "res2net/faster-rcnn_res2net-101_fpn_2x_coco", TWO_STAGE, options=LIVE_NORMS
    ),
    "resnest": F(
        "resnest/faster-rcnn_s50_fpn_syncbn-backbone+head_ms-range-1x_coco", TWO_STAGE
    ),
    "resnet_strikes_back": F(
        "resnet_strikes_back/retinanet_r50-rsb-pre_fpn_1x_coco", RETINA
    ),
    "scratch": F("scratch/faster-rcnn_r50-scratch_fpn_gn-all_6x_coco", TWO_STAGE),
    "simple_copy_paste": F(
        "simple_copy_paste/"
        "mask-rcnn_r50_fpn_rpn-2conv_4conv1fc_syncbn-all_32xb2-ssj-90k_coco",
        TWO_STAGE,
    ),
    "strong_baselines": F(
        "strong_baselines/mask-rcnn_r50_fpn_rpn-2conv_4conv1fc_syncbn-all_lsj-50e_coco",
        TWO_STAGE,
    ),
    "swin": F("swin/retinanet_swin-t-p4-w7_fpn_1x_coco", RETINA),
    "convnext": F(
        "convnext/mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco",
        cannot=MMPRETRAIN,
    ),
    "timm_example": F(
        "timm_example/retinanet_timm-tv-resnet50_fpn_1x_coco", cannot=MMPRETRAIN
    ),
    "wider_face": F("wider_face/retinanet_r50_fpn_1x_widerface", RETINA),
    "legacy_1.x": F("legacy_1.x/retinanet_r50_fpn_1x_coco_v1", RETINA),
    "instaboost": F("instaboost/mask-rcnn_r50_fpn_instaboost-4x_coco", TWO_STAGE),
    "albu_example": F("albu_example/mask-rcnn_r50_fpn_albu-1x_coco", TWO_STAGE),
    "selfsup_pretrain": F(
        "selfsup_pretrain/mask-rcnn_r50-mocov2-pre_fpn_1x_coco", TWO_STAGE
    ),
    "soft_teacher": F(
        "soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.01-coco",
        ("student.rpn_head.rpn_cls", "student.roi_head.bbox_head.fc_cls"),
        data="branches",
    ),
    # text and video
    "glip": F("glip/glip_atss_swin-t_a_fpn_dyhead_pretrain_obj365", cannot=BERT),
    "grounding_dino": F(
        "grounding_dino/grounding_dino_r50_scratch_8xb2_1x_coco", cannot=BERT
    ),
    "mm_grounding_dino": F(
        "mm_grounding_dino/grounding_dino_swin-t_pretrain_obj365", cannot=BERT
    ),
}
