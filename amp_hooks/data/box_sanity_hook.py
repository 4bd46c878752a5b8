"""Look at the ground-truth boxes of every batch, after augmentation."""

from __future__ import annotations

from collections import Counter
from typing import Any

import mmengine.dist as dist
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement

from ..engine.batches import boxes_of, data_samples
from ..engine.checks import check_choice, check_number
from ..engine.hook import AmpHook
from ..engine.messages import WarnOnce, warn
from ..engine.of_others import attribute
from ..engine.recorder import IterationRecord
from ..engine.remark import Remark
from ..engine.runtime import Runtime
from ..engine.verdict import Verdict
from ..engine.words import first_names
from ..errors import BadBoxesError
from ..registry import HOOKS
from .box_check import FlawedImage, check_boxes, layout_of
from .boxes import FLAWS

_MAX_WARNINGS = 5
_MAX_LINES = 1000  # a hundredth of the ledger: the annotation file tells the rest
_ENOUGH = 10  # batches: boxes are seen by then
_WAITING = 100  # lines of another rank that wait for the next exchange

_ACTIONS = ("warn", "drop", "raise")
_DONE = {"warn": "They are trained on", "drop": "They are left out of training"}


@HOOKS.register_module()
class BoxSanityHook(AmpHook):
    """Finds boxes that make losses NaN in each batch, as augmentation has left it.

    ============== =============================================================
    Flaw           Boxes
    ============== =============================================================
    ``not_finite`` with NaN or an infinity
    ``negative``   whose right or lower edge lies before the other one
    ``zero``       without width or height
    ``sub_pixel``  with a width or height below ``min_size``
    ``outside``    of which no part is in the image (``img_shape``)
    ``empty_mask`` sound, but with a mask without a pixel, or polygons of no area
    ============== =============================================================

    A box that sticks out of its image is sound: mosaics and affine transforms leave
    such boxes by design. Of mmrotate's rotated boxes and quadrilaterals, their own
    widths and heights count, and whether the box around them is in the image. Boxes of
    other kinds (in space) are passed over, which is said once; so are crowds and other
    ignored instances, which nothing is learned from.

    The first batches with such boxes are warnings, and each is a ``boxes`` line of the
    ledger with counts by flaw and image paths, up to 1000 lines. With several processes
    each looks at its own batches; those of other ranks reach the ledger with the next
    bad iteration, with the next epoch, or at the end.

    The boxes are read where they are, in host memory before the model moves them, so
    this waits for no device; a data set of your own whose boxes are on the GPU already
    costs one copy of them an iteration, and its masks are not looked at.

    Args:
        action (str): 'warn' only looks, and every bit of training stays. 'drop' leaves
            such instances out, with labels, masks and whatever else belongs to them; an
            image that loses all of them stays, as background. 'raise' ends the run with
            a ValueError that names them. Defaults to 'warn'.
        min_size (float): Smallest width and height, in pixels, that is taken for sound.
            The default is what MMDetection's own large-scale-jitter configs filter by:
            usual recipes make boxes of a tenth of a pixel in every epoch, which do no
            harm. Defaults to 0.01.

    Raises:
        TypeError, ValueError: A wrong argument; with ``action='raise'``, such a box.

    Examples:
        >>> custom_hooks = [dict(type='amp_hooks.BoxSanityHook', action='drop')]
    """

    # After FaultInjectionHook, whose boxes it shall find; before all that keep the
    # batch, to run it again or to put its samples elsewhere.
    priority = 20

    def __init__(self, action: str = "warn", min_size: float = 0.01) -> None:
        owner = "BoxSanityHook"
        self.action = check_choice(owner, "action", action, _ACTIONS)
        self.min_size = check_number(owner, "min_size", min_size, 0)
        self.counts: Counter[str] = Counter()  # rank 0: of all ranks, so far as known
        self._waiting: list[dict[str, Any]] = []  # of this rank, for the ledger
        self._warnings = self._lines = 0
        self._unseen: int | None = 0  # batches without boxes; None: enough is known
        self._warn_once = WarnOnce()

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        """Look at the batch before anybody keeps it."""
        try:
            self._look_for_any(data_batch)
            found, odd = check_boxes(data_batch, self.min_size)
        except Exception as e:  # of a data set of one's own; it must not cost the run
            self._warn_once(
                "BoxSanityHook cannot read the boxes of this batch, and passes it over "
                f"({e!r}). This is said once.",
                "unreadable",
            )
            return
        if odd:
            self._warn_once(
                "BoxSanityHook passes over boxes that are no (x1, y1, x2, y2): "
                f"{', '.join(sorted(odd))}.",
                "odd",
            )
        if found:
            self._report(runner, found)
            self._act(found)

    def _look_for_any(self, batch: Any) -> None:
        """A layout that is not known has boxes nobody looks at: say so."""
        if self._unseen is None:
            return
        samples = list(data_samples(batch))
        if any(boxes_of(sample)[1] is not None for sample in samples):
            self._unseen = None
            return
        self._unseen += 1
        if self._unseen == _ENOUGH:
            self._unseen = None
            what = "none of the data samples has gt_instances.bboxes"
            text = (
                f"BoxSanityHook has seen no ground-truth boxes in {_ENOUGH} batches: "
                f"{what if samples else 'there are no data samples that it knows'}, in "
                f"{layout_of(batch)}. If there are boxes, they are not looked at. This "
                "is said once."
            )
            # Classes of an image or of its pixels, keypoints: as is to be expected.
            other_task = samples and all(map(_of_other_task, samples))
            self._warn_once(Remark(text) if other_task else text, "none")

    def after_record(
        self, runner: Runner, runtime: Runtime, record: IterationRecord
    ) -> None:
        """Count; a bad iteration is known to all ranks, so they can exchange lines."""
        record.put("bad_boxes_total", 0)
        for flaw, number in self.counts.items():
            record.put("bad_boxes_total", number, flaw)
        if record.verdict.is_bad:
            self._exchange(runner)

    def before_train_epoch(self, runner: Runner) -> None:
        """Bring what other ranks have found to the ledger."""
        self._exchange(runner)

    def after_train(self, runner: Runner) -> None:
        """Say how many there were."""
        self._exchange(runner)
        super().after_train(runner)
        if self.counts and dist.is_main_process():
            warn(
                f"BoxSanityHook found {sum(self.counts.values())} invalid boxes: "
                f"{_shown(self.counts)}. The 'boxes' lines of stability.jsonl "
                "name their images."
            )

    def state(self) -> dict[str, Any]:
        """The counts."""
        return dict(counts=dict(self.counts))

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on counting."""
        self.counts = Counter({str(k): int(n) for k, n in state["counts"].items()})

    def _act(self, found: list[FlawedImage]) -> None:
        if self.action == "raise":
            raise BadBoxesError(f"BoxSanityHook: {self._describe(found)}. {_remedy()}")
        if self.action == "drop":
            for image in found:
                try:
                    image.drop()
                except Exception as e:  # of fields that cannot be indexed
                    self._warn_once(
                        f"BoxSanityHook cannot leave boxes out of {image.name} "
                        f"({e!r}); they are trained on. This is said once.",
                        "stay",
                    )

    def _report(self, runner: Runner, found: list[FlawedImage]) -> None:
        line = dict(
            iter=runner.iter,
            action=self.action,
            counts=dict(sum((image.counts for image in found), Counter())),
            images=[image.name for image in found],
            images_total=len(found),
        )
        if dist.is_main_process():
            self._write(runner, 0, line)
        elif len(self._waiting) < _WAITING:
            self._waiting.append(line)
        else:
            last = self._waiting[-1]
            last["counts"] = dict(Counter(last["counts"]) + Counter(line["counts"]))
            last["images_total"] += len(found)
        self._warnings += 1
        if self._warnings <= _MAX_WARNINGS and self.action != "raise":
            quiet = " From here on they are only counted and written to the ledger."
            warn(
                f"iteration {runner.iter}: {self._describe(found)}. "
                f"{_DONE[self.action]}. {_remedy(self.action)}"
                + (quiet if self._warnings == _MAX_WARNINGS else "")
            )

    def _describe(self, found: list[FlawedImage]) -> str:
        shown = [f"{im.name} {w}" for im in found for w in im.words(self.min_size)]
        return f"invalid boxes: {first_names(shown)}"

    def _write(self, runner: Runner, rank: int, line: dict[str, Any]) -> None:
        self.counts.update(line["counts"])
        self._lines += 1
        if self._lines <= _MAX_LINES:
            fields = {k: v for k, v in line.items() if k != "iter"}
            runtime = Runtime.of(runner)
            runtime.emit("boxes", line["iter"], Verdict.HEALTHY, rank=rank, **fields)
        else:
            self._warn_once(
                f"BoxSanityHook has written {_MAX_LINES} lines to stability.jsonl and "
                "writes no more, to leave room for other events. It goes on counting.",
                "lines",
            )

    def _exchange(self, runner: Runner) -> None:
        """A collective, for bad iterations and between epochs."""
        if dist.get_world_size() == 1:
            return
        for rank, lines in enumerate(dist.all_gather_object(self._waiting)):
            for line in lines if dist.is_main_process() else []:
                self._write(runner, rank, line)
        self._waiting = []


def _shown(counts: Counter[str]) -> str:
    return ", ".join(f"{counts[flaw]} {flaw}" for flaw in FLAWS if counts[flaw])


def _remedy(action: str = "warn") -> str:
    drop = "" if action == "drop" else "BoxSanityHook(action='drop') leaves them out; "
    return (
        f"{drop}dict(type='FilterAnnotations', min_gt_bbox_wh=(1, 1)) in the pipeline "
        "filters small ones, and 'amp-hooks check-annotations' looks through the "
        "annotation file."
    )


def _of_other_task(sample: Any) -> bool:
    """Whether what a data sample teaches is known, and no objects with classes."""
    if not isinstance(sample, BaseDataElement):
        return False
    fields = [key for key in map(str, sample.keys()) if key.startswith("gt_")]
    objects = attribute(attribute(sample, "gt_instances"), "labels") is not None
    return bool(fields) and not objects and "gt_instances_3d" not in fields
