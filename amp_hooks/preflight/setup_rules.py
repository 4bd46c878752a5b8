"""Judge, before training, what a run is made of: images, dtypes, card, validation."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..engine.finding import Finding
from ..engine.words import first_names

# TU116 and TU117, Turing without tensor cores: GTX 16xx, MX450, MX550, T400 to T1200,
# Quadro T1000 and T2000, CMP 30HX. Their FP16 convolutions give NaN, and FP16
# validation an mAP of 0 (yolov5#7908, pytorch#58123). The list of Ultralytics'
# check_amp, and their kin. Not the Tesla T4, which has the same capability.
_BAD_FP16 = re.compile(
    r"\b(GTX 16[356]0|MX[45]50|T(400|500|550|600|1000|1200|2000)|CMP 30HX)"
    r"(?![0-9])",
    re.IGNORECASE,
)
_FEW_BOXES = 5  # so many scores may all lie at the threshold


@dataclass(frozen=True)
class Images:
    """What the model is given, after the data preprocessor.

    Attributes:
        dtype: Without ``torch.``.
        low: Smallest value.
        high: Largest.
        std: Standard deviation in a channel, averaged over the channels.
    """

    dtype: str
    low: float
    high: float
    std: float


@torch.no_grad()
def measure_images(images: Tensor) -> Images:
    """Measure a batch (images, channels, ...) of any dtype; waits for the device."""
    dtype = str(images.dtype).rsplit(".", 1)[-1]
    x = images.detach().float()
    low, high = x.aminmax()
    channels = x.transpose(0, 1).flatten(1) if x.dim() > 2 else x.reshape(1, -1)
    std = channels.std(1, correction=0).mean()
    return Images(dtype, *torch.stack([low, high, std]).tolist())


def images(seen: Images, raw_by_design: bool, stored_statistics: bool) -> list[Finding]:
    """Whether images are normalised, once, and of a dtype that a model can use.

    Raw pixels are at least 0 and far above 1. Means of 0 and standard deviations of 1
    are no criterion: Caffe's backbones take 0 +- 60, YOLOv3 takes 0 to 1.

    Args:
        seen: What the model was given.
        raw_by_design: The backbone is one that takes raw pixels (YOLOX).
        stored_statistics: The first BatchNorm is in evaluation mode, so that nothing
            makes up for the scale of the images.
    """
    findings = []
    if seen.dtype not in ("float32", "bfloat16"):
        findings.append(
            Finding(
                "input_dtype",
                f"The model is given {seen.dtype} images.",
                "Convolutions take FP32, and autocast does not convert these. Let the "
                "data preprocessor convert them: DetDataPreprocessor does.",
                fails=seen.dtype != "float16",
            )
        )
    if seen.low >= 0 and seen.high > 16 and not raw_by_design:
        findings.append(
            Finding(
                "not_normalized",
                f"The images are not normalised: values from {seen.low:.3g} to "
                f"{seen.high:.3g} after the data preprocessor."
                + (
                    " BatchNorm uses stored statistics, so activations are some 60 "
                    "times larger than in pretraining."
                    if stored_statistics
                    else ""
                ),
                "Give the data preprocessor mean and std of the pretraining; or, if "
                "the model is meant to take raw pixels, say "
                "AmpPreflightHook(ignore=['not_normalized']).",
                "model = dict(data_preprocessor=dict(\n"
                "    mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]))",
                fails=stored_statistics,
            )
        )
    if 0 < seen.std < 0.03:
        findings.append(
            Finding(
                "normalized_twice",
                f"The images hardly vary: standard deviation {seen.std:.2g}, values "
                f"from {seen.low:.3g} to {seen.high:.3g}.",
                "They were normalised twice (a Normalize step in the pipeline beside "
                "the data preprocessor), or were 0 to 1 before it. Do it once.",
            )
        )
    return findings


def parameter_dtypes(dtypes: Mapping[str, str], has_scaler: bool) -> list[Finding]:
    """Trained parameters that are not FP32.

    Args:
        dtypes: By name, without ``torch.``.
        has_scaler: Gradients are unscaled by a GradScaler.
    """
    findings = []
    for dtype in dict.fromkeys(dtypes.values()):
        if dtype == "float32":
            continue
        names = [name for name, d in dtypes.items() if d == dtype]
        ends = dtype == "float16" and has_scaler
        findings.append(
            Finding(
                "parameter_dtype",
                f"{len(names)} trained parameters are {dtype}: {first_names(names)}."
                + (
                    " GradScaler ends with 'Attempting to unscale FP16 gradients'."
                    if ends
                    else ""
                ),
                "Mixed precision keeps parameters in FP32 and converts them on the "
                "way. Look for .half(), .bfloat16() or .double() on the model, and "
                "for torch.set_default_dtype.",
                fails=ends,
            )
        )
    return findings


def bad_fp16_card(name: str, capability: tuple[int, int]) -> bool:
    """Whether a CUDA device is known to compute FP16 wrongly.

    Args:
        name: As ``torch.cuda.get_device_name`` gives it.
        capability: As ``torch.cuda.get_device_capability`` does.
    """
    return capability == (7, 5) and _BAD_FP16.search(name) is not None


def card(name: str, capability: tuple[int, int], dtype: str) -> list[Finding]:
    """What is known of a CUDA device and the precision that was configured.

    Args:
        name: As ``torch.cuda.get_device_name`` gives it.
        capability: As ``torch.cuda.get_device_capability`` does.
        dtype: 'float16', 'bfloat16' or 'float32'.
    """
    version = ".".join(map(str, capability))
    if dtype == "float16" and bad_fp16_card(name, capability):
        return [
            Finding(
                "fp16_card",
                f"{name} is known for NaN and an mAP of 0 in FP16.",
                "Train and validate in FP32 there.",
                "optim_wrapper = dict(_delete_=True, type='OptimWrapper', "
                "optimizer=...)",
                fails=True,
            )
        ]
    if dtype == "bfloat16" and capability < (8, 0):
        return [
            Finding(
                "bf16_card",
                f"{name} (capability {version}) has no BF16 arithmetic, which needs "
                "8.0: it is emulated, slowly, or refused.",
                "Use FP16 there, or FP32.",
                "optim_wrapper = dict(dtype='float16')",
            )
        ]
    if dtype == "float16" and capability < (7, 0):
        return [
            Finding(
                "fp16_slow",
                f"{name} (capability {version}) has no tensor cores: FP16 saves memory "
                "there, but hardly any time.",
                "Use FP32 unless you need the memory.",
            )
        ]
    return []


@dataclass(frozen=True)
class Predictions:
    """What one batch of validation gave.

    Attributes:
        boxes: Predicted instances, or None if the model predicts none.
        nonfinite: Names of predicted tensors that are not finite.
        peaks: Largest |logit| by classifier layer, infinite if one is not finite.
        error: What it raised.
    """

    boxes: int | None = None
    nonfinite: Sequence[str] = ()
    peaks: Mapping[str, float] = field(default_factory=dict)
    error: str = ""


def validation(fp32: Predictions, fp16: Predictions) -> list[Finding]:
    """Whether validation in FP16 gives what FP32 gives, at least something.

    A detector that has learned nothing yet may predict no box at all, so the logits
    before any threshold are compared as well.
    """
    if fp32.error:
        return [
            Finding(
                "validation_raises",
                f"The model raises on the first batch of validation: {fp32.error}",
                "The first validation will end with it.",
                fails=True,
            )
        ]
    lost = [n for n, p in fp16.peaks.items() if not p < float("inf")]
    lost = [n for n in lost if fp32.peaks.get(n, 0.0) < float("inf")]
    faded = [n for n, p in fp16.peaks.items() if p < fp32.peaks.get(n, 0.0) / 16]
    bad = [n for n in fp16.nonfinite if n not in fp32.nonfinite]
    what = ""
    if fp16.error:
        what = f"raises {fp16.error}"
    elif lost:
        what = f"yields logits that are not finite ({first_names(lost)})"
    elif bad:
        what = f"yields values that are not finite ({first_names(bad)})"
    elif (fp32.boxes or 0) >= _FEW_BOXES and fp16.boxes == 0:
        what = f"yields no box, where FP32 yields {fp32.boxes}"
    elif faded:
        what = f"yields logits that are nearly 0 ({first_names(faded)})"
    if not what:
        return []
    return [
        Finding(
            "fp16_validation",
            f"Validation in FP16 {what}, on its first batch.",
            "Validate in FP32; training stays as it is.",
            "val_cfg = dict(fp16=False)",
            fails=True,
        )
    ]
