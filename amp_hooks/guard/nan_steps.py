"""Training steps that raise because of NaN."""

from __future__ import annotations

import linecache
import re
from collections.abc import Sequence
from datetime import timedelta

import mmengine.dist as dist
import torch
import torch.distributed
from mmengine.runner import Runner

from ..engine.error_tap import Raised
from ..engine.messages import warn
from ..engine.nan_variables import among_nan
from ..engine.of_others import text_of
from ..engine.patch import Guard, unguarded
from ..engine.runtime import Runtime
from ..engine.verdict import Verdict
from ..errors import NoStepError, OnPurpose, TrainingDivergedError

# How code reports that it was given NaN or infinities, as regular expressions.
NAN_ERRORS = (
    # scipy's linear_sum_assignment, in Hungarian assigners (mmdetection#8155, #4549)
    r"matrix contains invalid numeric entries",
    r"cost matrix is infeasible",
    # binary_cross_entropy on a CPU, in SimOTAAssigner (YOLOX)
    r"all elements of (input|target) should be between 0 and 1",
    # mmdet's PISASSDHead and YOLACTHead
    r"become infinite or NaN",
    # asserts without a message, by their source line: mmdet's ATSSHead and
    # CenterNetUpdateHead
    r"assert .*\b(isnan|isfinite|isinf)\(",
    r"cannot convert float (NaN|infinity) to integer",
    # generalized_box_iou of DETR and its copies: NaN is not >= NaN (detr#101)
    r"assert \(?\w+\[\.*:?, ?2:\] ?>= ?\w+\[\.*:?, ?:2\]\)?\.all\(\)",
    # sklearn's check_array; detectron2's "Predicted boxes or scores contain Inf/NaN"
    r"\bcontains? (NaN|infinity|inf)\b",
    # "Loss is not finite, stopping training"; torch.linalg
    r"\b(non-?|not )finite\b",
    r"\bloss(es)? (is|are|became|has become) infinite\b",
    # a printed tensor or array with such values, or the word in a message
    r"(?<![\w.'\"=-])-?(nan|infs?|infinity|NaNs)(?![\w'\"(=-])",
)


class RaisedElsewhere(OnPurpose, Exception):
    """Another rank gave up this iteration, so this one does."""


class NanSteps:
    """Leaves out an iteration that raised because of NaN.

    Args:
        runner: Its model and optimizers are attached.
        runtime: Gets the exception, for the iteration's record.
        patterns: As in :func:`is_nan_error`.
        limit: Such iterations in a row that are borne.
        vote: How several ranks agree; ``None``: not at all.
        guarded: Bears what goes wrong here.
    """

    def __init__(
        self,
        runner: Runner,
        runtime: Runtime,
        patterns: Sequence[str],
        limit: int,
        vote: Vote | None,
        guarded: Guard = unguarded,
    ) -> None:
        self._guarded = guarded
        self._runner, self._runtime = runner, runtime
        self._patterns, self._limit, self._vote = patterns, limit, vote
        self._in_a_row = 0
        self._voted = False

    def attach(self) -> None:
        """Look at every exception, and vote before every backward pass."""
        if not self._limit:
            return
        self._runtime.errors.attach(self._runner)
        self._runtime.errors.before.append(self._begin)
        self._runtime.errors.handlers.append(self._guarded(self._handle, None))
        if self._vote is not None and self._runtime.tap.gate is not None:
            self._runtime.tap.gate.on_backward.append(self._ask_others)

    def start_anew(self) -> None:
        """A step was taken, or the state has gone back: count from the beginning."""
        self._in_a_row = 0

    def _begin(self) -> None:
        self._voted = False

    def _ask_others(self) -> None:
        if self._vote is None or self._voted:
            return
        self._voted = True
        if ranks := self._vote.cast(raised=False):
            raise RaisedElsewhere(ranks)

    def _handle(self, error: Exception) -> Raised | None:
        text = f"{type(error).__name__}: {text_of(error)}"
        if isinstance(error, RaisedElsewhere):
            (ranks,) = error.args
            text = "an exception"
        elif not is_nan_error(error, self._patterns):
            return None
        else:
            ranks = self._ranks(error)
        iteration = self._runner.iter
        self._in_a_row += 1
        where = f" on rank {ranks}" if dist.get_world_size() > 1 else ""
        if self._in_a_row > self._limit:
            self._runtime.emit("abort", iteration, Verdict.RAISED, error=text)
            raise TrainingDivergedError(
                f"{self._in_a_row} training steps in a row, up to iteration "
                f"{iteration}, raised because of NaN{where}: {text}. More than "
                f"StepGuardHook(max_nan_errors={self._limit}) bears. Lower the "
                "learning rate, and let amp_hooks.RollbackHook go back in time, with a "
                "patience below that."
            ) from error
        warn(
            f"iteration {iteration} was left out, because its training step raised "
            f"{text}{where}, as code does that is given NaN."
        )
        return Raised(text, ranks)

    def _ranks(self, error: Exception) -> list[int]:
        if dist.get_world_size() == 1:
            return [0]
        rank = dist.get_rank()
        raised = f"rank {rank} raised {type(error).__name__}: {text_of(error)}"
        if self._vote is None or self._voted:
            raise NoStepError(
                f"{raised}, because of NaN. The other ranks wait for its gradients, so "
                "training cannot go on here. To leave such iterations out on all ranks "
                "set StepGuardHook(vote=True), which costs a small collective in every "
                "iteration and works for what is raised before the backward pass."
            ) from error
        try:
            self._voted = True
            return self._vote.cast(raised=True)
        except RuntimeError as e:
            raise NoStepError(
                f"{raised}, because of NaN, and the other ranks did not come to the "
                f"vote within {self._vote.timeout} s: {e}. They probably wait in a "
                "collective of the loss itself (an averaged number of positives, say), "
                "where no vote reaches them. Resume from the last checkpoint with a "
                "lower learning rate."
            ) from error


def is_nan_error(error: BaseException, patterns: Sequence[str] = NAN_ERRORS) -> bool:
    """Whether an exception says, or its variables show, that NaN has caused it.

    Args:
        error: As caught. Of an AssertionError the source line that failed is looked at
            too, since such asserts often have no message.
        patterns: Regular expressions, searched in both without regard to case.
    """
    text = text_of(error)
    if isinstance(error, FloatingPointError):
        return True
    if isinstance(error, OSError):  # of a file, whatever its name
        return False
    if type(error).__module__.startswith("torch._dynamo"):  # whose text shows code
        return False
    if isinstance(error, AssertionError):
        text += "\n" + _failed_line(error)
    told = any(re.search(pattern, text, re.IGNORECASE) for pattern in patterns)
    return told or among_nan(error)


def _failed_line(error: BaseException) -> str:
    traceback = error.__traceback__
    if traceback is None:
        return ""
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    filename = traceback.tb_frame.f_code.co_filename
    return linecache.getline(filename, traceback.tb_lineno).strip()


class Vote:
    """One small collective per iteration, on CPU tensors in a group of its own.

    In the default group a vote could be paired with a collective of the model's loss.

    Args:
        timeout: Seconds to wait for the other ranks.
    """

    def __init__(self, timeout: int) -> None:
        self.timeout = timeout
        # Its construction is a collective as well.
        self._group = torch.distributed.new_group(
            backend="gloo", timeout=timedelta(seconds=timeout)
        )

    def cast(self, raised: bool) -> list[int]:
        """Ranks that raised. Waits for every rank.

        Raises:
            RuntimeError: The others did not come within the timeout.
        """
        ballots = torch.zeros(torch.distributed.get_world_size())
        ballots[torch.distributed.get_rank()] = float(raised)
        torch.distributed.all_reduce(ballots, group=self._group)
        return ballots.nonzero().flatten().tolist()
