"""Act on what will fail, where that can be done in place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmengine.runner import Runner

from ..engine.finding import Finding
from ..engine.messages import warn
from ..engine.of_others import has
from ..engine.run import any_rank, iter_wrappers
from ..engine.runtime import Runtime
from ..engine.verdict import Verdict
from ..precision.lower_precision import MixedPrecision, bfloat16_runs_on
from ..precision.precision_fallback_hook import PrecisionFallbackHook
from .batch_rules import OF_PRECISION
from .first_batch import FirstBatch
from .validation import fp16_off


class Remedy:
    """Leaves a precision in which the first batch, or FP16 validation, failed.

    Args:
        on_fail: As of AmpPreflightHook.

    Attributes:
        precision: What training was changed to; ``None`` if it was not, or if a
            PrecisionFallbackHook did it.
    """

    def __init__(self, on_fail: str) -> None:
        self._on_fail = on_fail
        self._configured: MixedPrecision | None = None
        self.precision: str | None = None

    def act(
        self, runner: Runner, findings: Sequence[Finding], first: FirstBatch | None
    ) -> str:
        """Do what ``on_fail`` says, on every rank alike.

        Args:
            runner: About to train.
            findings: The same on every rank.
            first: The first batch, if it could be looked at.

        Returns:
            What was done, in a word for the ledger.
        """
        fails = {f.name for f in findings if f.fails}
        if not fails:
            return "told" if findings else "nothing"
        if self._on_fail == "raise":
            return "raised"
        if self._on_fail == "warn":
            return "told"
        done = "told"
        if "fp16_validation" in fails:
            fp16_off(runner)
            done = "validation in float32"
            warn("pre-flight: validation and test run in FP32 from now on.")
        if cured := sorted(fails & OF_PRECISION):
            return (
                self._lower(runner, first, f"pre-flight ({', '.join(cured)})") or done
            )
        return done

    def leave(self, runner: Runner, precision: str) -> None:
        """Compute in another precision, for good, where no other hook sees to it."""
        self.precision = precision
        if self._configured is None:
            self._configured = MixedPrecision(runner)
        self._configured.leave(precision)

    def give_back(self) -> None:
        """Give the optimizers back as they were configured."""
        if self._configured is not None:
            self._configured.enter(scale_floor=0.0)
            self._configured = None

    def _lower(
        self, runner: Runner, first: FirstBatch | None, reason: str
    ) -> str | None:
        """Leave the configured precision, if there is one to leave; for which."""
        fallbacks = [h for h in runner.hooks if isinstance(h, PrecisionFallbackHook)]
        now = fallbacks[0].precision if fallbacks else self.precision
        mixed = any(
            has(wrapper, "cast_dtype")
            for _, wrapper in iter_wrappers(runner.optim_wrapper)
        )
        if now == "float32" or not mixed:
            return None
        precision = "float32"
        # A collective, so every rank takes part.
        if self._on_fail == "bf16" and not any_rank(not _bf16_runs(first)):
            precision = "bfloat16"
        runtime = Runtime.of(runner)
        if precision == "float32" and not runtime.fp32_fits:
            warn(
                f"training keeps its precision in spite of {reason}: FP32 has no "
                "memory for the batch. Make the batch smaller."
            )
            return None
        if fallbacks:
            fallbacks[0].leave(runner, runtime, Verdict.HEALTHY, precision, reason)
            return precision
        self.leave(runner, precision)
        runtime.emit(
            "fallback",
            runner.iter,
            Verdict.HEALTHY,
            to=precision,
            until=None,
            reason=reason,
        )
        warn(f"training runs in {precision}, for good, because of {reason}.")
        return precision


def _bf16_runs(first: FirstBatch | None) -> bool:
    """Whether it is another precision, the device has it, and the batch is fine."""
    if first is None or first.dtype == "bfloat16":
        return False
    device = next(first.model.parameters()).device
    try:
        return bfloat16_runs_on(device) and first.runs_in(torch.bfloat16)
    except Exception:
        return False  # no memory, for one
