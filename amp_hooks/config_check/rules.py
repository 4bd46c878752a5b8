"""What is known to hurt; a rule that does not know enough says nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..engine.config_values import dig, items_of
from ..engine.finding import Finding, source
from .facts import Facts


def static_loss_scale(cfg: Mapping[str, Any], facts: Facts) -> Iterator[Finding]:
    """FP16 with a loss scale that nothing lowers when it overflows."""
    if facts.has("StepGuardHook", "RollbackHook"):
        return  # both lower it, StepGuardHook not below its floor
    for wrapper in facts.wrappers:
        if wrapper.dtype == "float16" and wrapper.static_scale is not None:
            yield Finding(
                "static_loss_scale",
                f"{wrapper.key}.loss_scale={wrapper.static_scale:g} is static: nothing "
                "lowers it when gradients overflow FP16, so from then on every step "
                "may be skipped, and the model stands still while losses look normal.",
                "Let it find its level, or add amp_hooks.StepGuardHook, which lowers "
                "a static scale as well, down to its scale_floor.",
                _line(wrapper.name, loss_scale="dynamic"),
            )


def no_clip_grad(cfg: Mapping[str, Any], facts: Facts) -> Iterator[Finding]:
    """Mixed precision without gradient clipping."""
    if any(dig(hook.arguments, "adaptive_clip") for hook in facts.hooks):
        return
    for wrapper in facts.wrappers:
        if wrapper.dtype and not wrapper.clips:
            yield Finding(
                "no_clip_grad",
                f"{wrapper.key} computes in {wrapper.dtype} without clip_grad: the "
                "loss scale skips gradients that are infinite, but one batch whose "
                "gradients are merely huge is applied as it is, and the logits after "
                "it may overflow.",
                "Clip their norm; where MMDetection's own configs clip, they take 35, "
                "and 0.1 for DETR and its kin.",
                _line(wrapper.name, clip_grad=dict(max_norm=35, norm_type=2)),
                remedies=dict(clip=35),
            )


def error_if_nonfinite(cfg: Mapping[str, Any], facts: Facts) -> Iterator[Finding]:
    """Clipping that ends the run at gradients which are not finite."""
    for wrapper in facts.wrappers:
        if wrapper.clip_raises:
            half = wrapper.dtype == "float16"
            yield Finding(
                "error_if_nonfinite",
                f"{wrapper.key}.clip_grad.error_if_nonfinite=True ends the run at the "
                "first gradient norm that is not finite"
                + (
                    ", which a loss scale meets while it finds its level: GradScaler "
                    "would have skipped that step."
                    if half
                    else ", before StepGuardHook or RollbackHook could undo it."
                ),
                "Leave it out.",
                _line(wrapper.name, clip_grad=dict(error_if_nonfinite=False)),
                fails=half,
            )


def resume_and_ema(cfg: Mapping[str, Any], facts: Facts) -> Iterator[Finding]:
    """Averaged weights that a resume, or the best checkpoint, gets wrong."""
    if facts.resume and facts.saved_ema and not facts.has("EMAHook"):
        yield Finding(
            "resume_without_ema",
            "The checkpoint to be resumed was written with an EMAHook, and this "
            "config has none. Its state_dict holds the averaged weights: training "
            "goes on from them with an optimizer state that belongs to the others, "
            "which are dropped.",
            "Keep the EMAHook that the run began with; a custom_hooks list in your "
            "config replaces the inherited one.",
            "# in custom_hooks, with the arguments that the run began with:\n"
            "dict(type='EMAHook', ...),",
        )
    ema, saver = facts.place("EMAHook"), facts.place("CheckpointHook")
    if ema is not None and saver is not None and ema > saver:
        mine, its = facts.hooks[ema].priority, facts.hooks[saver].priority
        yield Finding(
            "ema_after_checkpoint",
            f"EMAHook (priority {mine}) comes after CheckpointHook ({its}): a best_* "
            "checkpoint is written while the two sets of weights are exchanged, so it "
            "does not hold the weights that were evaluated, and a resume from it takes "
            "one set for the other. One saved after an iteration lacks its average.",
            "Give EMAHook MMDetection's priority.",
            "# in EMAHook's entry:\npriority=49,",
        )


def val_fp16(cfg: Mapping[str, Any], facts: Facts) -> Iterator[Finding]:
    """Validation in FP16."""
    if not dig(cfg, "val_cfg", "fp16"):
        return
    others = {wrapper.dtype or "float32" for wrapper in facts.wrappers} - {"float16"}
    words = f", where training computes in {', '.join(sorted(others))}"
    other = words if others else ""
    yield Finding(
        "val_fp16",
        f"val_cfg.fp16=True: validation computes in FP16{other}. There is no loss "
        "scale that would notice an overflow: NaN scores pass no threshold, so it "
        "shows as a lower mAP, down to 0, and save_best acts on that.",
        "Validate in FP32: it needs no gradients and is a small part of a run.",
        "val_cfg = dict(fp16=False)",
    )


def check_invalid_loss(cfg: Mapping[str, Any], facts: Facts) -> Iterator[Finding]:
    """A hook of MMDetection ends the run at an iteration that ours have undone."""
    cures = ("StepGuardHook", "RollbackHook")
    if not facts.has("CheckInvalidLossHook") or not facts.has(*cures):
        return
    ours = " and ".join(name for name in cures if facts.has(name))
    left = [
        hook
        for hook in items_of(cfg.get("custom_hooks"))
        if "CheckInvalidLossHook" not in str(hook.get("type"))
    ]
    yield Finding(
        "check_invalid_loss",
        "CheckInvalidLossHook in custom_hooks ends the run if the loss of an iteration "
        f"it looks at is not finite, also where {ours} has undone that iteration; of "
        "several processes it ends one, and the others wait.",
        f"Leave it out; {ours} looks at every iteration.",
        f"custom_hooks = {source(left)}",
    )


def unused_parameters(cfg: Mapping[str, Any], facts: Facts) -> Iterator[Finding]:
    """The switch for unused parameters, where MMEngine does not read it."""
    wrapper = cfg.get("model_wrapper_cfg")
    asked = bool(cfg.get("find_unused_parameters"))
    if not asked or not isinstance(wrapper, Mapping) or facts.world_size < 2:
        return
    if "find_unused_parameters" not in wrapper:
        yield Finding(
            "find_unused_parameters",
            "find_unused_parameters=True is ignored, because there is a "
            "model_wrapper_cfg: a model with unused parameters stops at its second "
            "iteration with 'Expected to have finished reduction in the prior "
            "iteration'.",
            "Write it there.",
            "model_wrapper_cfg = dict(find_unused_parameters=True)",
        )


def _line(wrapper: str, **settings: Any) -> str:
    value: dict[str, Any] = {wrapper: settings} if wrapper else settings
    return f"optim_wrapper = {source(value)}"
