"""In which precisions does a network learn here?"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from mmengine.optim import build_optim_wrapper

from ..errors import UnsupportedError
from .rows import BROKEN, FINDING, NOTE, OK, Row
from .tiny import TinyModel, images, optim_wrapper

NAMES = {"float32": "FP32", "float16": "FP16", "bfloat16": "BF16"}
_STEPS = 10
_OTHER = "Train in another precision, or see whether torch was built for this GPU."


def check() -> Iterator[Row]:
    """A few steps in each, with the optimizer wrapper that training would have."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for precision, name in NAMES.items():
        what = f"{name}, {device}"
        try:
            yield _row(what, device, precision)
        except UnsupportedError as e:  # no rehearsal before torch 2.3
            yield Row(what, str(e), NOTE)
        except Exception as e:
            # A run that needs it cannot go on; one in FP32 can.
            result = BROKEN if precision == "float32" else FINDING
            yield Row(what, f"{type(e).__name__}: {e}", result, _OTHER)


def _row(what: str, device: str, precision: str) -> Row:
    torch.manual_seed(0)
    model = TinyModel().to(device)
    wrapper = build_optim_wrapper(model, optim_wrapper(device, precision))
    inputs, labels = (each.to(device) for each in images(32))
    losses = []
    for _ in range(_STEPS):
        with wrapper.optim_context(model):
            loss = model(inputs, labels)["loss_cls"]
        wrapper.update_params(loss)
        losses.append(float(loss.detach()))
    finite = all(map(math.isfinite, losses))
    found = f"loss {losses[0]:.2f} to {losses[-1]:.2f} in {_STEPS} steps"
    if precision == "float16":
        rehearsed = ", rehearsed" if device == "cpu" else ""
        found += f" at loss scale {wrapper.loss_scaler.get_scale():g}{rehearsed}"
    if precision == "bfloat16" and device == "cuda" and not _native_bf16():
        return Row(what, f"{found}, emulated", NOTE, "It is slow: FP16 is faster here.")
    if finite and losses[-1] < losses[0]:
        return Row(what, found, OK)
    result = BROKEN if precision == "float32" else FINDING
    return Row(what, f"it does not learn: {found}", result, _OTHER)


def _native_bf16() -> bool:
    """Whether the GPU computes in BF16 itself."""
    try:
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    except TypeError:  # of a torch that knows of no emulation
        return bool(torch.cuda.is_bf16_supported())
