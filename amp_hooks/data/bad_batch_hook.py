"""Write down which images were in bad iterations, and leave out those that repeat."""

from __future__ import annotations

from collections import deque
from typing import Any

import mmengine.dist as dist
from mmengine.runner import Runner

from ..engine.batches import BatchView, plain_id
from ..engine.checks import check_bool, check_int
from ..engine.hook import AmpHook
from ..engine.messages import WarnOnce, warn
from ..engine.recorder import IterationRecord
from ..engine.run import accumulating
from ..engine.runtime import Runtime
from ..engine.verdict import Verdict
from ..registry import HOOKS
from .suspects import Batch, StandIns, Suspects, to_blame

_NAMED = 5  # images in a warning
_MAX_LINES = 10_000  # a tenth of the ledger: room must be left for all other events
_MOST_BATCHES = 1000  # batches, should an optimizer never step


@HOOKS.register_module()
class BadBatchHook(AmpHook):
    """Writes down the images of every bad iteration and finds those that come back.

    A ``bad_batch`` line of the ledger has ``iter``, ``verdict``, ``rank``, ``images``
    (paths) and ``ids``. Bad are all verdicts but HEALTHY and SCALE_OVERFLOW. The line
    is about the batch whose forward pass failed, on each rank where one did; if only
    gradients were not finite, about every batch that fed the optimizer step, of all
    ranks. There is one line per batch; after 10000 lines no more are written.

    An image in ``suspect_after`` bad iterations is a suspect: one warning, one
    ``suspect`` line (``image``, ``id``, ``iters``). Of a streak of bad iterations,
    which only a healthy optimizer step ends, the first alone is evidence, because
    broken weights make every batch bad; a rollback does not end a streak. An image is
    not accused for having been beside a known suspect. It may still have bad luck
    twice: in a data set of N images, n isolated bad iterations with B images to blame
    in each accuse about (n B)^2 / 2N innocent ones. Where that is not small, with many
    processes say, take a larger ``suspect_after``.

    With ``skip=True`` a suspect is left out from then on: before the forward pass a
    copy of another sample of the batch takes its place, the one with the least evidence
    against it, or else the last healthy sample seen on this rank. So the batch size
    stays, and with several processes every rank goes on taking part. ``replaced`` lines
    (``image``, ``by``; of rank 0's batches) and the log at the end of training tell how
    often.

    Names come from the data samples' ``img_path``, ``img_id`` or ``sample_idx``; of a
    mosaic or MixUp that is the first of its images. A clean iteration waits for
    nothing and has no collective; a bad one has one, with several processes. Counts and
    suspects survive a resume.

    Args:
        suspect_after (int): Bad iterations that make an image a suspect. Defaults to 2.
        skip (bool): Leave suspects out of training. Defaults to False.
        max_images (int): Images remembered; those with the least evidence are forgotten
            first, suspects never. Defaults to 10000.

    Raises:
        TypeError, ValueError: A wrong argument.

    Examples:
        >>> custom_hooks = [dict(type='amp_hooks.BadBatchHook')]
        >>> custom_hooks = [
        ...     dict(type='amp_hooks.BadBatchHook', suspect_after=3, skip=True)]
    """

    # After the batch was changed by others; before HeadClampHook releases its layers,
    # and before RollbackHook, so that the lines are there even if it ends the run.
    priority = 34

    def __init__(
        self, suspect_after: int = 2, skip: bool = False, max_images: int = 10000
    ) -> None:
        owner = "BadBatchHook"
        self.suspect_after = check_int(owner, "suspect_after", suspect_after, 1)
        self.skip = check_bool(owner, "skip", skip)
        self.max_images = check_int(owner, "max_images", max_images, 1)
        self.suspects = Suspects(self.suspect_after, self.max_images)
        self.replaced = 0  # samples, of this process
        # The batches that feed the next optimizer step.
        self._of_step: deque[Batch] = deque(maxlen=_MOST_BATCHES)
        self._stand_ins = StandIns(self.suspects)
        self._lines = 0
        self._warn_once = WarnOnce()

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        """Remember what the batch consists of, and leave suspects out of it."""
        if not accumulating(runner.optim_wrapper):
            self._of_step.clear()
        view = BatchView(data_batch)
        images = view.images()
        if not images:
            self._warn_once(
                "BadBatchHook: the batch has no image names, so bad batches cannot be "
                "written down. Add 'img_path' to the meta_keys of the transform that "
                "packs the inputs (PackDetInputs, say); mmyolo's yolov5_collate throws "
                "the names away unless it is made to keep them as img_metas.",
                "names",
            )
        elif self.skip and self.suspects.images:
            self._leave_out(runner, view)
            images = view.images()
        self._of_step.append(Batch(runner.iter, list(images), list(images.values())))

    def after_record(
        self, runner: Runner, runtime: Runtime, record: IterationRecord
    ) -> None:
        """Write down who is to blame for a bad iteration, and count."""
        raised = record.verdict is Verdict.RAISED and dist.get_rank() in record.ranks
        self._of_step[-1].failed = bool(runtime.forward.here) or raised
        if record.verdict.is_of_the_batch:
            self._blame(runtime, record)
        elif record.verdict is Verdict.HEALTHY:
            self._stand_ins.healthy()
            if record.proves_something:
                self.suspects.healthy_step()
        if record.verdict is Verdict.RAISED:
            self._of_step.clear()  # no step will come of it

    def after_train(self, runner: Runner) -> None:
        """Say how often suspects were left out."""
        super().after_train(runner)
        if not self.skip:
            return
        total = sum(dist.all_gather_object(self.replaced))
        if total:
            warn(
                f"BadBatchHook replaced {total} samples of {len(self.suspects.images)} "
                "suspect images, which were left out of training; the 'suspect' lines "
                "of stability.jsonl name them."
            )

    def state(self) -> dict[str, Any]:
        """Evidence and streak."""
        return self.suspects.state()

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on counting."""
        self.suspects.load_state(state)

    def _blame(self, runtime: Runtime, record: IterationRecord) -> None:
        for batch in self._of_step:
            batch.ids = [plain_id(image_id) for image_id in batch.ids]
        # Every rank is here: a bad verdict is the same on all of them.
        of_ranks = dist.all_gather_object(list(self._of_step))
        blamed = to_blame(of_ranks, record.ranks)
        for rank, batch in blamed:
            if batch.images:
                self._emit(
                    runtime,
                    "bad_batch",
                    batch.iter,
                    record.verdict,
                    rank=rank,
                    images=batch.images,
                    ids=batch.ids,
                )
        ids = {i: d for _, b in blamed for i, d in zip(b.images, b.ids)}
        found = self.suspects.bad(batch for _, batch in blamed)
        for image in found:
            runtime.emit(
                "suspect",
                record.iter,
                record.verdict,
                image=image,
                id=ids[image],
                iters=self.suspects.iterations(image),
            )
        if found:
            self._accuse(found)
        of_this_rank = {b.iter for rank, b in blamed if rank == dist.get_rank()}
        for batch in self._of_step:
            batch.blamed |= batch.iter in of_this_rank

    def _accuse(self, found: list[str]) -> None:
        named = [(image, self.suspects.iterations(image)) for image in found[:_NAMED]]
        shown = "; ".join(
            f"{image} (iterations {', '.join(map(str, iters))})"
            for image, iters in named
        )
        more = f"; and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        warn(
            f"images that were in bad iterations {self.suspect_after} times: "
            f"{shown}{more}. Look at their annotations (boxes of zero size, NaN, "
            "outside the image) and whether the files can be read. "
            + (
                "From now on they are left out."
                if self.skip
                else "BadBatchHook(skip=True) leaves such images out."
            )
        )

    def _leave_out(self, runner: Runner, view: BatchView) -> None:
        for image, by in self._stand_ins.apply(view):
            if by is None:
                self._warn_once(
                    f"BadBatchHook could not leave {image} out of iteration "
                    f"{runner.iter}: there is no healthy sample yet that fits in its "
                    "place. It is trained on; this is said once.",
                    "stays",
                )
                continue
            self.replaced += 1
            self._emit(
                Runtime.of(runner),
                "replaced",
                runner.iter,
                Verdict.HEALTHY,
                rank=dist.get_rank(),
                image=image,
                by=by or None,
                total=self.replaced,
            )
        self._stand_ins.remember(view)

    def _emit(
        self,
        runtime: Runtime,
        event: str,
        iteration: int,
        verdict: Verdict,
        **fields: Any,
    ) -> None:
        self._lines += 1
        if self._lines <= _MAX_LINES:
            runtime.emit(event, iteration, verdict, **fields)
        else:
            self._warn_once(
                f"BadBatchHook has written {_MAX_LINES} lines to stability.jsonl and "
                "writes no more, to leave room for other events.",
                "lines",
            )
