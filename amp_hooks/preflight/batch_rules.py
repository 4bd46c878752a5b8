"""Judge what the first batch showed, before training: numbers in, findings out.

The limits were measured on the first three batches of Faster and Cascade R-CNN,
RetinaNet, FCOS, RTMDet and DETR as ``scripts/fault_matrix.py`` makes them (FP16
rehearsed on a CPU, and BF16 but for the first two, which mmcv has not there) and on two
of each recipe of ``configs/digits``. All are healthy, and nothing is found in them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..engine.finding import Finding, source
from ..engine.headroom import FP16_MAX, USELESS_LOGIT, headroom_bits
from ..engine.words import first_names

# A loss term may differ by a quarter. Measured in FP16: 0.2%, but for RTMDet; in BF16:
# 5%, but for RTMDet.
LOSS_TOLERANCE = 0.25
# Differences below this say nothing: RTMDet's loss_bbox of 0.003 to 0.03 is off by 9%
# in FP16 and 79% in BF16, for its assigner chooses among boxes that are all bad.
LOSS_FLOOR = 0.05
# Measured: 5.1 at most. Trained heads stay far below it as well, since a sigmoid of 17
# is 1.0 in FP32.
LARGE_LOGIT = USELESS_LOGIT
# GradScaler's 65536 takes so many halvings to 8. Measured: 8 for DETR, whose largest
# gradient is 208; 2 at most for the others.
MANY_SKIPS = 13
# Share of the parameters. Measured, first batch at a scale of 128: 8%, with any scale.
FLUSHED_SHARE = 0.25
_HALF_TINY = 2.0**-25  # rounds to zero in half precision
# What another precision can cure, if it fails.
OF_PRECISION = frozenset(
    "raises_amp nonfinite_amp gradients_nonfinite large_logits loss_scale_high "
    "fp16_card".split()
)
_LEAVE = "Or leave the precision: AmpPreflightHook(on_fail='bf16') or 'fp32'."


def relative_differences(
    one: Mapping[str, float], other: Mapping[str, float]
) -> dict[str, float]:
    """Of each loss term of both, to the larger of the two, or to LOSS_FLOOR.

    NaN where one of them is not finite.
    """
    both = {name: (a, other[name]) for name, a in one.items() if name in other}
    return {
        name: abs(a - b) / max(abs(a), abs(b), LOSS_FLOOR)
        if math.isfinite(a) and math.isfinite(b)
        else math.nan
        for name, (a, b) in both.items()
    }


def losses_differ(
    fp32: Mapping[str, float], amp: Mapping[str, float], dtype: str
) -> list[Finding]:
    """Loss terms that mixed precision changes by more than rounding explains.

    Args:
        fp32: Each loss term of the batch.
        amp: The same in mixed precision, same weights and random numbers.
        dtype: Of the latter.
    """
    off = [
        f"{name} {amp[name]:.4g} instead of {fp32[name]:.4g}"
        for name, share in relative_differences(fp32, amp).items()
        if share > LOSS_TOLERANCE and abs(fp32[name] - amp[name]) > LOSS_FLOOR
    ]
    if not off:
        return []
    return [
        Finding(
            "losses_differ",
            f"In {dtype} the losses of the first batch are not those of FP32: "
            f"{first_names(off)}.",
            "Something in the head or the losses needs FP32: compute it with "
            "torch.autocast(device_type, enabled=False) on float inputs, or let "
            "HeadClampHook do it.",
            hooks=dict(HeadClampHook=dict(when="always")),
        )
    ]


def large_logits(peaks: Mapping[str, float], dtype: str) -> list[Finding]:
    """Classifier layers whose logits are far out, before anything was learned.

    Args:
        peaks: Largest |logit| of each layer in FP32; infinite if one is not finite.
        dtype: What training computes in.
    """
    findings = []
    for name, peak in peaks.items():
        if peak <= LARGE_LOGIT:
            continue
        overflows = peak > FP16_MAX if dtype == "float16" else not math.isfinite(peak)
        room = ""
        if dtype == "float16" and not overflows:
            room = f", {headroom_bits(peak):.1f} doublings below FP16's limit of 65504"
        elif overflows and math.isfinite(peak):
            room = ", beyond FP16's limit of 65504"
        findings.append(
            Finding(
                "large_logits",
                f"The logits of {name} reach {peak:.4g} on the first batch{room}; "
                "those of a sound head begin below 10.",
                f"Look at the initialisation of {name} (init_cfg, a scale factor, "
                "weights loaded into the wrong layer) and at what it is fed with. "
                "HeadClampHook bounds the logits meanwhile.",
                fails=overflows,
            )
        )
    return findings


def loss_scale(
    peaks: Mapping[str, float],
    scale: float,
    fixed: bool,
    overflowed: bool,
    optimizer: str = "",
) -> list[Finding]:
    """Whether the loss scale fits the range of the gradients.

    Args:
        peaks: Largest |gradient| of each parameter, unscaled, in FP32.
        scale: That the first step is going to use.
        fixed: Nobody is going to lower it.
        overflowed: In FP16 the gradients of the batch did overflow with it, which those
            of activations may do before those of parameters.
        optimizer: Its name, if there are several.
    """
    nonzero = [p for p in peaks.values() if p > 0]
    if not nonzero:
        return []
    largest = max(peaks, key=lambda name: peaks[name])
    peak = peaks[largest]
    fits = min(65536.0, 2.0 ** math.floor(math.log2(FP16_MAX / peak) - 1))
    if overflowed:
        fits = min(fits, scale / 2)
    setting: dict[str, Any] = dict(loss_scale=dict(init_scale=fits))
    if optimizer:
        setting = {optimizer: setting}
    beyond = peak * scale / FP16_MAX
    skips = math.ceil(math.log2(beyond)) if beyond > 1 else 0
    whose = f" of optimizer {optimizer}" if optimizer else ""
    about = f"the largest gradient{whose} is {peak:.3g} ({largest})"
    if fits < 1 or skips >= MANY_SKIPS or (fixed and (skips or overflowed)):
        if fixed:
            what = f"With the fixed loss scale of {scale:g} gradients overflow in FP16"
            after = "so that no step will be taken"
        else:
            what = f"A loss scale of {scale:g} is much too high"
            after = f"so that about the first {skips} steps will be skipped"
        lines = ""
        remedy = (
            "Gradients of that size overflow in FP16 even unscaled: look for what "
            "makes them (initialisation, loss weights, images that are not "
            "normalised), or train in BF16 or FP32."
        )
        if fits >= 1:
            remedy = f"A loss scale of {fits:g} would fit, dynamic from there on."
            lines = f"optim_wrapper = {source(setting)}"
        return [
            Finding(
                "loss_scale_high",
                f"{what}: {about}, {after}.",
                remedy,
                lines,
                fails=fixed or fits < 1,
            )
        ]

    def flushed(scale: float) -> int:
        return sum(p * scale < _HALF_TINY for p in nonzero)

    saved = flushed(scale) - flushed(fits)
    if saved < FLUSHED_SHARE * len(nonzero):
        return []
    return [
        Finding(
            "loss_scale_low",
            f"With a loss scale of {scale:g} the whole gradient of {flushed(scale)} of "
            f"{len(nonzero)} parameters is too small for FP16 and becomes 0, though "
            f"{about}.",
            f"A loss scale of {fits:g} would fit, dynamic from there on.",
            f"optim_wrapper = {source(setting)}",
        )
    ]


def no_gradient(optimizer: str, why: str) -> Finding:
    """An optimizer none of whose parameters gets a gradient, and why."""
    return Finding(
        "no_gradient",
        f"Optimizer{' ' + optimizer if optimizer else ''} has nothing to train: {why}.",
        "As it stands nothing is learned, and GradScaler ends with 'No inf checks were "
        "recorded for this optimizer'.",
        fails=True,
    )


def unused(
    names: Sequence[str], total: int, refused: bool, by_wrapper: bool = False
) -> list[Finding]:
    """Parameters that the first batch gives no gradient.

    Args:
        names: Of those that require one.
        total: How many require one.
        refused: With DDP, not told of it: it raises at the second iteration.
        by_wrapper: The config has a ``model_wrapper_cfg``, beside which MMEngine does
            not read ``find_unused_parameters``.
    """
    if not names:
        return []
    line = "find_unused_parameters = True"
    if by_wrapper:
        line = "model_wrapper_cfg = dict(find_unused_parameters=True)"
    return [
        Finding(
            "unused_parameters",
            f"{len(names)} of {total} parameters get no gradient from the first batch: "
            f"{first_names(list(names))}.",
            "Either they are not used by the loss, or only by batches with other "
            "content."
            + (" DDP raises 'Expected to have finished reduction'." if refused else ""),
            line if refused else "",
            fails=refused,
        )
    ]


def zero_gradients() -> Finding:
    """There are gradients, and all of them are 0."""
    return Finding(
        "zero_gradients",
        "Every gradient of the first batch is exactly 0.",
        "Look for a loss weight of 0, a dead activation, or a batch without objects.",
        fails=True,
    )


def raises(error: str, dtype: str, in_fp32: str) -> Finding:
    """The model cannot be trained: its forward pass raises.

    Args:
        error: Type and message.
        dtype: What training computes in.
        in_fp32: What FP32 raises; empty if it runs there.
    """
    cured = dtype != "float32" and not in_fp32
    return Finding(
        "raises_amp" if cured else "raises",
        f"The model raises on the first batch in {dtype}: {error}",
        "In FP32 it runs: an operator has no version for this precision, or gets "
        f"inputs of two. {_LEAVE}"
        if cured
        else "Training will end with it.",
        fails=True,
    )


def nonfinite(where: str, dtype: str, in_fp32: bool) -> Finding:
    """Losses or gradients that are not finite.

    Args:
        where: The sentence of a forward pass that was watched.
        dtype: What it was computed in.
        in_fp32: It is not finite in FP32 either.
    """
    cured = dtype != "float32" and not in_fp32
    return Finding(
        "nonfinite_amp" if cured else "nonfinite",
        f"The first batch is not finite in {dtype}: {where}",
        f"In FP32 it is finite. HeadClampHook bounds any module by pattern. {_LEAVE}"
        if cured
        else "It is not finite in FP32 either, so no precision cures it: look at data "
        "and initialisation.",
        fails=True,
    )


def gradients_nonfinite(names: Sequence[str], dtype: str) -> Finding:
    """Gradients that no loss scale makes finite."""
    return Finding(
        "gradients_nonfinite",
        f"In {dtype} the gradients of {first_names(list(names))} are not finite at any "
        "loss scale, although the losses are.",
        f"In FP32 they are finite. {_LEAVE}",
        fails=True,
    )
