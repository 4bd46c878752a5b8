"""Which of an evaluation's metrics a run is judged by."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

# Names of mmdet's, mmseg's, mmpretrain's and mmpose's metrics, in this order; larger is
# better in all of them. "coco/bbox_mAP" is asked for, "coco/bbox_mAP_50" is not.
_KNOWN = tuple(
    re.compile(rf"(^|[/_.]){name}$")
    for name in ("mAP", "AP", "mIoU", "PQ", "accuracy", "top1", "aAcc", "NDS", "mDice")
)


def main_metric(
    metrics: Mapping[str, Any], checkpoint_hooks: Iterable[Any] = ()
) -> tuple[str, bool] | None:
    """The metric that ``save_best`` names, else a known one.

    Args:
        metrics: Of an evaluation, by name.
        checkpoint_hooks: The run's CheckpointHooks.

    Returns:
        Its name, and whether the largest value is the best; None if there is none.
    """
    for hook in checkpoint_hooks:
        for name in getattr(hook, "key_indicators", None) or ():
            rule = dict(zip(hook.key_indicators, getattr(hook, "rules", None) or ()))
            name = next(iter(metrics), name) if name == "auto" else name
            if _is_number(metrics.get(name)):
                return name, rule.get(name, rule.get("auto")) != "less"
    for known in _KNOWN:
        for name, value in metrics.items():
            if known.search(name) and _is_number(value):
                return name, True
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
