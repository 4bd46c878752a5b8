"""Look at the first batch before anything is learned from it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import mmengine.dist as dist
import torch
from mmengine.logging import print_log
from mmengine.runner import Runner

from ..config_check.check import check_config, lines_of
from ..engine.checks import check_bool, check_choice
from ..engine.finding import Finding, numbered
from ..engine.headroom import headroom_bits
from ..engine.hook import AmpHook
from ..engine.messages import warn
from ..engine.run import any_rank
from ..engine.runtime import Runtime
from ..engine.sharded import is_sharded
from ..engine.supported import refuse_unsupported
from ..engine.verdict import Verdict
from ..errors import PreflightError
from ..forensics.replay import in_a_line
from ..precision.precision_fallback_hook import PrecisionFallbackHook
from ..registry import HOOKS
from .batch_findings import batch_findings
from .first_batch import FirstBatch
from .remedy import Remedy
from .validation import asks_for_fp16, validation_findings

_ON_FAIL = ("warn", "fp32", "bf16", "raise")


@HOOKS.register_module()
class AmpPreflightHook(AmpHook):
    """Runs the first batch in FP32 and in mixed precision, and tells what will fail.

    On the first real batch of each start, before it is trained on, the user's own
    model is run forward and backward twice, without an update: in FP32, and as
    configured. One screen then tells what was found, what fails first, and what to do.
    What Ultralytics' ``check_amp`` does with one fixed model and image.

    ======================= ==========================================================
    Finding                 When
    ======================= ==========================================================
    ``raises``              The model raises, in FP32 as well. Fails.
    ``raises_amp``          It raises in mixed precision only. Fails.
    ``nonfinite``           Losses or gradients are not finite in FP32. Fails.
    ``nonfinite_amp``       Losses are not finite in mixed precision. Fails.
    ``gradients_nonfinite`` Nor are gradients, whatever the loss scale. Fails.
    ``losses_differ``       A loss term differs from FP32 by 0.05 and by a quarter.
    ``large_logits``        Logits of a classifier layer beyond 100; fails if they
                            overflow.
    ``loss_scale_high``     The loss scale overflows: by 13 halvings or more, or it is
                            static. Fails if it is static or no scale fits.
    ``loss_scale_low``      A quarter of the parameters would get a gradient, with a
                            higher scale.
    ``no_gradient``         No parameter of an optimizer gets one. Fails.
    ``zero_gradients``      All gradients are 0. Fails.
    ``unused_parameters``   Some parameters get none. Fails under DDP without
                            ``find_unused_parameters``.
    ``input_dtype``         Images are not FP32. Fails, but for FP16.
    ``parameter_dtype``     Trained parameters are not FP32. Fails for FP16 with a
                            GradScaler.
    ``not_normalized``      Images are raw pixels, and the backbone is not YOLOX's.
                            Fails if BatchNorm uses stored statistics.
    ``normalized_twice``    Images hardly vary.
    ``fp16_card``           The GPU is known for NaN in FP16 (GTX 16xx and kin). Fails.
    ``bf16_card``           It has no BF16.
    ``fp16_slow``           It has no tensor cores.
    ``fp16_validation``     ``fp16=True`` of the validation or test loop yields nothing,
                            or values that are not finite, where FP32 does not. Fails.
    ``validation_raises``   That batch raises in FP32. Fails.
    ======================= ==========================================================

    and what :func:`amp_hooks.config_check.check.check_config` finds in the config.
    Where the limits come from is in :mod:`amp_hooks.preflight.batch_rules`.

    Training afterwards is bit for bit what it would have been (tested), unless
    ``on_fail`` changes its precision: the batch, random numbers, buffers, attributes
    and gradients are left alone. It costs about two iterations, once; if FP32 does not
    fit in memory, it is run with fewer images. With several processes each looks at its
    own batch, alone; all of them act on what one of them finds. What raises because it
    needs the others, a part of the batch only or a ``train_step`` of the model's own is
    a note, and no finding.

    Args:
        on_fail (str): What to do about a finding that fails. 'warn' goes on; 'raise'
            ends with :class:`PreflightError` before training; 'fp32' and 'bf16' train
            on in that precision, if it is one that a precision can cure, for good:
            with PrecisionFallbackHook through it. BF16 is tried on the batch first, and
            FP32 follows where it does not run. Validation in FP16 that yields nothing
            is then done in FP32. Defaults to 'warn'.
        config_check (bool): Look at the config as well. Defaults to True.
        ignore (list[str], optional): Names of findings to leave out. Defaults to None.

    Raises:
        TypeError, ValueError: A wrong argument.

    Examples:
        >>> custom_hooks = [dict(type='amp_hooks.AmpPreflightHook', on_fail='raise')]
    """

    priority = 46  # after those that change the batch, the model or the precision

    def __init__(
        self,
        on_fail: str = "warn",
        config_check: bool = True,
        ignore: Sequence[str] | None = None,
    ) -> None:
        owner = "AmpPreflightHook"
        self.on_fail = check_choice(owner, "on_fail", on_fail, _ON_FAIL)
        self.config_check = check_bool(owner, "config_check", config_check)
        names = [ignore] if isinstance(ignore, str) else ignore or []
        if not all(isinstance(name, str) for name in names):
            raise TypeError(
                f"{owner}: ignore must be a list of names of findings, such as "
                f"['not_normalized'], got {ignore!r}."
            )
        self.ignore = list(names)
        self.precision: str | None = None  # that was left for, without a fallback hook
        self.findings: list[Finding] = []  # of this start
        self._remedy = Remedy(self.on_fail)
        self.notes: list[str] = []  # what could not be looked at
        self._looked = False

    def attach(self, runner: Runner, runtime: Runtime) -> None:
        """Go on in the precision that an earlier start has left for."""
        refuse_unsupported(self, runner)
        self._looked = False
        self.undo.callback(self._remedy.give_back)
        if self.precision is not None:
            self._remedy.leave(runner, self.precision)

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        """Look at the first batch of the process."""
        if self._looked:
            return
        self._looked = True
        runtime, began = Runtime.of(runner), time.perf_counter()
        first, found, self.notes = self._look(runner, data_batch)
        if torch.cuda.is_initialized():
            # FP32 took more than training is going to take, and to report.
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        self.findings = self._of_all_ranks(found)
        # By the whole model: a fallback on one rank alone would leave the others.
        runtime.fp32_fits = not any_rank(first is not None and not first.fits)
        seconds = round(time.perf_counter() - began, 1)
        text = self._tell(runner, seconds, first)
        done = self._remedy.act(runner, self.findings, first)
        self.precision = self._remedy.precision
        runtime.emit(
            "preflight",
            runner.iter,
            Verdict.HEALTHY,
            findings=[f.name for f in self.findings],
            fails=[f.name for f in self.findings if f.fails],
            loss_differences=first.differences if first else {},
            headroom_bits=_headroom(first),
            seconds=seconds,
            done=done,
            remedies={k: v for f in self.findings for k, v in f.remedies.items()},
        )
        if done == "raised":
            raise PreflightError(text)

    def state(self) -> dict[str, Any]:
        """The precision that was left for."""
        return dict(precision=self.precision) if self.precision else {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on in it."""
        self.precision = state["precision"]

    def _look(
        self, runner: Runner, data_batch: Any
    ) -> tuple[FirstBatch | None, list[Finding], list[str]]:
        """This rank's batch and findings, and what could not be looked into."""
        first: FirstBatch | None = None
        found: list[Finding] = []
        notes: list[str] = []

        def look(what: str, findings: Callable[[], list[Finding]]) -> None:
            try:
                found.extend(findings())
            except Exception as e:  # no memory, for one
                notes.append(f"{what} could not be looked at: {in_a_line(e)}")

        def first_batch() -> list[Finding]:
            nonlocal first
            first = FirstBatch(runner, data_batch)
            return batch_findings(runner, first)

        if sharded := is_sharded(runner):
            text = "pre-flight: a sharded model is not run for it, the config is read"
            print_log(f"[amp_hooks] {text}.", logger="current")
        else:
            look("the first batch", first_batch)
        if asks_for_fp16(runner) and not (sharded or _validates_in_fp32(runner)):
            layers = list(first.logits) if first is not None else []
            look("FP16 validation", lambda: validation_findings(runner, layers))
        if self.config_check:
            look("the config", lambda: check_config(runner))
        if first is not None:
            notes += first.notes
        return first, found, notes

    def _of_all_ranks(self, found: list[Finding]) -> list[Finding]:
        """The same on every rank: of each kind those of the first rank that has it."""
        found = [f for f in found if f.name not in self.ignore]
        if dist.get_world_size() == 1:
            return found
        merged: list[Finding] = []
        for rank, theirs in enumerate(dist.all_gather_object(found)):
            known = {f.name for f in merged}
            merged += [
                replace(f, what=f"{f.what} (Rank {rank}.)") if rank else f
                for f in theirs
                if f.name not in known
            ]
        return merged

    def _tell(self, runner: Runner, seconds: float, first: FirstBatch | None) -> str:
        """One screen for the log."""
        left_out = f" ({'; '.join(self.notes)})" if self.notes else ""
        if not self.findings:
            text = f"pre-flight: nothing found, {seconds} s{_numbers(first)}{left_out}"
            if self.notes:
                warn(text)
            else:
                print_log(f"[amp_hooks] {text}", logger="current")
            return text
        several = "s" if len(self.findings) > 1 else ""
        text = (
            f"pre-flight: {len(self.findings)} finding{several}, {seconds} s{left_out}"
            f"\n{numbered(self.findings, lines_of(runner.cfg))}"
        )
        if self.on_fail != "raise":
            warn(text)
        return text


def _headroom(first: FirstBatch | None) -> dict[str, float]:
    """In FP16, of each classifier layer."""
    peaks = first.logits if first else {}
    return {name: round(headroom_bits(peak), 1) for name, peak in peaks.items()}


def _numbers(first: FirstBatch | None) -> str:
    """How far from trouble the batch was, in words."""
    said = ""
    if first and first.mixed and first.differences:
        name, share = max(first.differences.items(), key=lambda item: item[1])
        said += f"; losses differ from FP32's by {share:.2%} at most ({name})"
    if room := _headroom(first):
        name, bits = min(room.items(), key=lambda item: item[1])
        said += f"; logits have {bits:g} doublings left to 65504 ({name})"
    return said


def _validates_in_fp32(runner: Runner) -> bool:
    """Whether PrecisionFallbackHook keeps it out of FP16."""
    return any(
        isinstance(hook, PrecisionFallbackHook) and (hook.val_fp32 or hook.precision)
        for hook in runner.hooks
    )
