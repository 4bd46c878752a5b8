"""Tell the losses of classification branches from all others."""

from __future__ import annotations

import re

from torch import nn

# Heads name their losses after the branch: mmdet's loss_cls, loss_obj (YOLO),
# loss_center_heatmap (CenterNet), mmseg's loss_decode, mmpretrain's loss_module.
_LOSS = {"loss", "losses", "criterion", "criterions", "criteria"}
_CLASSIFICATION = set(
    "cls class classes classification obj objectness conf heatmap decode seg segm "
    "semantic".split()
)
_PLAIN = {"fn", "func", "function", "module", "layer", "main", ""}
_OTHER_BRANCH = set(
    "angle bbox bboxes box boxes centerness ctr ctrness depth dfl dice dir distill "
    "embed embedding giou grid iou kd keypoint keypoints kpt kpts ld mask masks match "
    "offset point points pose pts reg regression shape track wh xy".split()
)
# Heads of another branch; a bbox_head, in contrast, classifies too.
_OTHER_HEAD = {"grid", "keypoint", "kpt", "mask", "point", "pose", "track"}
_CLASSIFICATION_TYPE = re.compile(
    "CrossEntropy|Focal|BCE|^NLL|Seesaw|GHMC|EQL|LabelSmooth|Asymmetric"
    "|MultiLabel|MultiMargin|SoftMargin"
)
_OTHER_TYPE = re.compile(
    "IoU|L1|L2|MSE|Dice|Distribution|Huber|Triplet|KL|Distill|Embedding|GHMR|GaussianNLL"
    # Keypoints, depth, representations: those of mmpose, mmseg and mmpretrain.
    "|^RLE|Wing|OKS|MPJPE|Bone|SiLog|Cosine|Correlation|Reconstruction|PixelLoss"
)


def is_classification_loss(path: str, module: nn.Module) -> bool:
    """Whether a module computes the loss of a classification branch.

    The name under which the head keeps it decides; where that says nothing
    (``criterion``, ``loss_fn``), the name of its class does.

    Args:
        path: The module's name in the model, such as ``bbox_head.loss_cls``.
        module: The module there.
    """
    *owners, name = [p for p in path.split(".") if not p.isdigit()] or [""]
    parts, kind = words(name), type(module).__name__
    # mmdet's CrossEntropyLoss is also the loss of mask heads.
    if parts & _OTHER_BRANCH or getattr(module, "use_mask", False):
        return False
    if parts & _LOSS and parts & _CLASSIFICATION:
        return True
    for owner in map(words, owners):
        if owner & _OTHER_HEAD or (owner & _LOSS and owner & _OTHER_BRANCH):
            return False
    if _OTHER_TYPE.search(kind):
        return False
    if _CLASSIFICATION_TYPE.search(kind):
        # FocalNet is a backbone.
        return "Loss" in kind or kind == "GHMC" or bool(parts & _LOSS)
    within = [type(m).__name__ for m in module.modules() if m is not module]
    parts_of_it = [kind for kind in within if "Loss" in kind]
    if parts_of_it and all(map(_OTHER_TYPE.search, parts_of_it)):
        return False  # a sum of them: mmpose's MultipleLossWrapper
    return bool(parts & _LOSS) and parts <= _LOSS | _PLAIN


def is_loss(path: str, module: nn.Module) -> bool:
    """Whether a module computes a loss of any kind, by its class or its name.

    Args:
        path: The module's name in the model, such as ``head.loss_module``.
        module: The module there.
    """
    last = path.rpartition(".")[2]
    return "Loss" in type(module).__name__ or bool(words(last) & _LOSS)


def words(name: str) -> set[str]:
    """The words of a name in snake case, without numbers."""
    return set(re.split("[^a-z]+", name.lower()))
