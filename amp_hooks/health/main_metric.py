"""Which of an evaluation's metrics a run is judged by."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

# Names of mmdet's, mmseg's, mmpretrain's and mmpose's metrics, in this order; larger is
# better in all of them. "coco/bbox_mAP" is asked for, "coco/bbox_mAP_50" is not, but
# where there is nothing else.
_NAMES = "mAP AP mIoU PQ accuracy top1 aAcc NDS mDice HOTA MOTA AP50 AR@100".split()
_KNOWN = tuple(re.compile(rf"(^|[/_.]){name}$") for name in _NAMES)


# MMEngine's CheckpointHook takes a smaller value for better where the name has this.
_LESS = "loss"


def main_metric(
    metrics: Mapping[str, Any], save_best: Iterable[tuple[str, str | None]] = ()
) -> tuple[str, bool] | None:
    """The metric that ``save_best`` names, else a known one.

    Args:
        metrics: Of an evaluation, by name.
        save_best: Names that CheckpointHook was given, each with its rule, or None.

    Returns:
        Its name, and whether the largest value is the best; None if there is none.
    """
    for name, rule in save_best:
        name = next(iter(metrics), name) if name == "auto" else name
        if _is_number(metrics.get(name)):
            less = rule == "less" if rule else _LESS in name.lower()
            return name, not less
    for known in _KNOWN:
        for name, value in metrics.items():
            named = isinstance(name, str) and known.search(name)
            if named and _is_number(value):
                return name, True
    return None


def of_masks(name: str) -> str:
    """The metric that CocoMetric gives for masks beside one for boxes."""
    return re.sub("bbox_mAP$", "segm_mAP", name)


def save_best_of(hook: Any) -> list[tuple[str, str | None]]:
    """What a CheckpointHook was given, as a hook or as its entry in a config."""
    if isinstance(hook, Mapping):
        names, rules = hook.get("save_best"), hook.get("rule")
    else:
        names = getattr(hook, "key_indicators", None)
        rules = getattr(hook, "rules", None)
    names = [names] if isinstance(names, str) else list(names or ())
    rules = [rules] if isinstance(rules, str) else list(rules or ())
    rules = rules * len(names) if len(rules) == 1 else rules
    return list(zip(names, [*rules, *[None] * len(names)]))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
