"""What the first batch tells about a run, before it is trained on."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import mmengine.dist as dist
import torch
from mmengine.model import BaseModel, is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from ..engine.finding import Finding
from ..engine.preserved import IMPOSSIBLE
from ..engine.run import active_scaler, trained_parameters
from ..engine.runtime import Runtime
from ..forensics.forward_trace import FRAMES
from ..forensics.report import conclusion
from ..guard.step_gate import why_no_gradient
from . import batch_rules, setup_rules
from .first_batch import FirstBatch, Pass

# Backbones that are made to take pixels of 0 to 255: YOLOX's.
_RAW_PIXELS = {"CSPDarknet", "YOLOXCSPDarknet"}
# Of a BatchNorm that has one value; SyncBatchNorm has those of other processes.
_ONE_VALUE = "Expected more than 1 value per channel"


def batch_findings(runner: Runner, first: FirstBatch) -> list[Finding]:
    """Run the batch in FP32 and as configured, and judge both."""
    found = _of_images(first)
    fp32 = first.in_fp32()
    real = first.as_configured() if first.mixed else fp32
    dtype = first.dtype
    found += _of_parameters(first) + _of_card(first)
    of_part = first.cut and real is fp32
    if error := real.seen.error:
        if of_part or _own_step(first) or _needs_others(error, fp32.seen.error):
            first.notes.append(f"the forward pass could not be run: {error}")
            return found
        return [*found, batch_rules.raises(error, dtype, fp32.seen.error)]
    if not fp32.runs:
        why = f"nothing to compare with, for FP32 raises {fp32.seen.error}"
        first.notes.append(why)
    elif not first.cut:
        found += batch_rules.large_logits(first.logits, dtype)
        found += batch_rules.losses_differ(fp32.seen.losses, real.seen.losses, dtype)
        first.differences = batch_rules.relative_differences(
            fp32.seen.losses, real.seen.losses
        )
    whole = fp32.runs and not first.cut
    learned = _of_gradients(runner, first, fp32 if whole else real)
    if _own_step(first):  # which may do more than this
        learned = [replace(f, fails=False) for f in learned]
    found += learned
    sound = fp32.runs and fp32.finite
    if real.seen.origin:
        found.append(_nonfinite(first, first.wrapper, real, not sound))
    elif not fp32.finite and (whole or real is fp32):
        found.append(_nonfinite(first, first.fp32, fp32, True))
    elif real.seen.nonfinite_grads:
        again = first.run(first.wrapper, 1.0).seen.nonfinite_grads
        if names := [name for name in again if name in real.seen.nonfinite_grads]:
            found.append(batch_rules.gradients_nonfinite(names, dtype))
    if dtype == "float16" and sound:
        found += _of_scale(runner, first, fp32.peaks, bool(real.seen.nonfinite_grads))
    return found


def _own_step(first: FirstBatch) -> bool:
    """Whether training does not just call the model for its losses."""
    own = getattr(type(first.model), "train_step", None)
    return own is not BaseModel.train_step


def _needs_others(*errors: str) -> bool:
    """Whether an error comes of being one process of several that computes alone."""
    several = dist.get_world_size() > 1
    return any(
        IMPOSSIBLE in error or (several and _ONE_VALUE in error) for error in errors
    )


def _nonfinite(
    first: FirstBatch, wrapper: OptimWrapper, seen: Pass, in_fp32: bool
) -> Finding:
    """Run it once more, watching every module."""
    with suppress(torch.cuda.OutOfMemoryError):  # then without the module
        seen = first.run(wrapper, 1.0, frames=FRAMES)
    where = conclusion(seen.seen, [])
    return batch_rules.nonfinite(where, seen.seen.dtype, in_fp32)


def _of_images(first: FirstBatch) -> list[Finding]:
    images = first.images()
    if not isinstance(images, Tensor) or not images.numel() or images.is_complex():
        return []
    modules = list(first.model.modules())
    classes = {cls.__name__ for m in modules for cls in type(m).__mro__}
    norms = [m for m in modules if getattr(m, "running_var", None) is not None]
    return setup_rules.images(
        setup_rules.measure_images(images),
        raw_by_design=bool(classes & _RAW_PIXELS),
        stored_statistics=bool(norms) and not norms[0].training,
    )


def _of_parameters(first: FirstBatch) -> list[Finding]:
    trained = {id(p) for w in first.wrappers.values() for p in trained_parameters(w)}
    dtypes = {
        name: str(p.dtype).rsplit(".", 1)[-1]
        for name, p in first.model.named_parameters()
        if p.requires_grad and id(p) in trained
    }
    has_scaler = active_scaler(first.wrapper) is not None
    return setup_rules.parameter_dtypes(dtypes, has_scaler)


def _of_card(first: FirstBatch) -> list[Finding]:
    device = next(first.model.parameters()).device
    if device.type != "cuda" or not torch.version.cuda:
        return []
    name = torch.cuda.get_device_name(device)
    capability = torch.cuda.get_device_capability(device)
    return setup_rules.card(name, capability, first.dtype)


def _of_gradients(runner: Runner, first: FirstBatch, seen: Pass) -> list[Finding]:
    skipped = seen.seen.skipped
    detached = "does not require grad" in skipped
    learns = any(p.requires_grad for p in first.model.parameters())
    if skipped and learns and not detached:
        first.notes.append(f"the backward pass could not be run: {skipped}")
        return []
    if not seen.seen.losses:
        first.notes.append("the model gave no losses")
        return []
    found, missing, total = [], [], 0
    names = _names(first.model)
    for optimizer, wrapper in first.wrappers.items():
        params = trained_parameters(wrapper)
        wanted = [names[id(p)] for p in params if p.requires_grad and id(p) in names]
        lacking = [name for name in wanted if name not in seen.peaks]
        if len(lacking) == len(wanted):
            why = why_no_gradient(params, names, detached)
            found.append(batch_rules.no_gradient(optimizer, why))
            continue
        total += len(wanted)
        missing += lacking
    # MMSeparateDistributedDataParallel has a DDP around each part.
    tolerated = any(
        getattr(module, "find_unused_parameters", False)
        or getattr(module, "static_graph", False)
        for module in runner.model.modules()
    )
    refused = is_model_wrapper(runner.model) and not tolerated
    by_wrapper = bool(runner.cfg.get("model_wrapper_cfg"))
    found += batch_rules.unused(missing, total, refused, by_wrapper)
    if seen.peaks and not any(seen.peaks.values()):
        found.append(batch_rules.zero_gradients())
    return found


def _of_scale(
    runner: Runner, first: FirstBatch, peaks: dict[str, float], overflowed: bool
) -> list[Finding]:
    found = []
    names = _names(first.model)
    tap = Runtime.of(runner).tap
    for optimizer, wrapper in first.wrappers.items():
        if (scaler := active_scaler(wrapper)) is None:
            continue
        own = [names.get(id(p), "") for p in trained_parameters(wrapper)]
        found += batch_rules.loss_scale(
            {name: peaks[name] for name in own if name in peaks},
            float(scaler.get_scale()),
            fixed=tap.scale_is_fixed(optimizer),
            overflowed=overflowed and wrapper is first.wrapper,
            optimizer=optimizer,
        )
    return found


def _names(model: nn.Module) -> dict[int, str]:
    return {id(p): name for name, p in model.named_parameters()}
