"""Watch the unscaled gradient norm."""

from __future__ import annotations

import math
from fnmatch import fnmatchcase
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import Tensor

from ..engine.checks import (
    check_dict,
    check_int,
    check_known_arguments,
    check_patterns,
    match_names,
)
from ..engine.hook import AmpHook
from ..engine.recorder import FlightRecorder, IterationRecord
from ..engine.run import bare_model, clip_max_norm, iter_wrappers, trained_parameters
from ..engine.runtime import Runtime
from ..registry import HOOKS
from .gradnorm import AdaptiveClip, group_norms, multiply_gradients

_NAMED = 5  # parameters with non-finite gradients that are named


@HOOKS.register_module()
class GradNormMonitorHook(AmpHook):
    """Records the L2 norm of the gradients at each optimizer step.

    Unscaled (the loss scale is divided out of the norm, the gradients stay as they
    are), before clipping, without needing ``clip_grad``, and once per step under
    gradient accumulation. The total comes with one norm per group of parameters. When
    gradients are not finite, the ledger's ``overflow`` line names the first five
    parameters concerned, as ``nonfinite_grads``, and how many there are; not where the
    forward pass was not finite, for then all of them are.

    Args:
        groups (dict[str, str or list[str]], optional): Name of a group to fnmatch
            patterns over parameter names. A parameter belongs to the first group that
            it matches. Defaults to None: one group per top-level child of the model
            (``backbone``, ``neck``, ``rpn_head``, ...).
        top_k (int): So many parameters with the largest gradient norm are logged; 0
            switches it off. Defaults to 5.
        top_k_interval (int): Iterations between these log lines. Defaults to 500.
        adaptive_clip (dict, optional): Clip norms that stand out from their own running
            mean (ZClip, arXiv 2504.02507), before ``clip_grad`` if there is one. Keys:
            ``z_threshold`` (2.5 standard deviations), ``alpha`` (0.97, decay per step)
            and ``warmup`` (25 steps); ``dict()`` takes these. It changes gradients,
            and so the run. Defaults to None.

    Raises:
        ValueError: At the start of training, if a pattern matches no parameter.

    Examples:
        >>> custom_hooks = [dict(type='amp_hooks.GradNormMonitorHook')]
        >>> custom_hooks = [
        ...     dict(type='amp_hooks.GradNormMonitorHook',
        ...          groups=dict(cls='*cls*', rest='*'))]
    """

    priority = 30

    def __init__(
        self,
        groups: dict[str, str | list[str]] | None = None,
        top_k: int = 5,
        top_k_interval: int = 500,
        adaptive_clip: dict | None = None,
    ) -> None:
        owner = "GradNormMonitorHook"
        check_dict(owner, "groups", groups, "dict(head='*_head.*')")
        check_dict(owner, "adaptive_clip", adaptive_clip, "dict(z_threshold=2.5)")
        self.groups = {
            name: check_patterns(owner, f"groups[{name!r}]", patterns)
            for name, patterns in (groups or {}).items()
        }
        self.top_k = check_int(owner, "top_k", top_k, 0)
        self.top_k_interval = check_int(owner, "top_k_interval", top_k_interval, 1)
        self.adaptive_clip = adaptive_clip
        if adaptive_clip is not None:
            check_known_arguments(AdaptiveClip, adaptive_clip)
            AdaptiveClip(**adaptive_clip)  # refuses wrong values now
        self._clips: dict[str, AdaptiveClip] = {}  # by optimizer, as all below
        self._names: dict[str, list[str]] = {}
        self._indices: dict[str, dict[str, Tensor]] = {}
        self._norms: dict[str, Tensor] = {}  # of the last step
        self._intervals = 0  # begun when the largest were last noted

    def attach(self, runner: Runner, runtime: Runtime) -> None:
        """Listen to the gradients of every optimizer."""
        self._intervals = runner.iter // self.top_k_interval
        names = {id(p): n for n, p in bare_model(runner).named_parameters()}
        for group, patterns in self.groups.items():
            argument = f"groups[{group!r}]"
            match_names(
                type(self).__name__, argument, patterns, names.values(), "parameter"
            )

        def on_gradients(
            name: str, wrapper: OptimWrapper, norms: Tensor, scale: Tensor | None
        ) -> None:
            params = trained_parameters(wrapper)
            if len(self._names.get(name, ())) != len(params):
                self._names[name] = [names.get(id(p), "other") for p in params]
                self._indices[name] = self._grouped(self._names[name], norms.device)
            if scale is not None:
                norms = norms / scale.to(norms.device)
            self._norms[name] = norms
            by_group = group_norms(norms, self._indices[name])
            for group, norm in by_group.items():
                runtime.recorder.note("gradnorm", norm, _join(name, group))
            # A step may be late for it, under gradient accumulation.
            due = (runner.iter + 1) // self.top_k_interval > self._intervals
            if due and self.top_k:
                self._note_largest(runtime.recorder, name, norms)
            if self.adaptive_clip is not None:
                factor = self._clip(name).coefficient(by_group[""])
                multiply_gradients(params, factor)
                runtime.recorder.note("adaptive_clip", factor, name, reduce="min")

        runtime.tap.listeners.append(self.guarded(on_gradients))
        runtime.observers.append(self.guarded(self._name_nonfinite, {}))

    def after_record(
        self, runner: Runner, runtime: Runtime, record: IterationRecord
    ) -> None:
        """Add the clip line; log the largest gradients if this iteration noted them."""
        for name, wrapper in iter_wrappers(runner.optim_wrapper):
            if (max_norm := clip_max_norm(wrapper)) is not None:
                record.put("clip_max_norm", max_norm, name)
        indices = record.values.pop("top_index", {})
        if not indices:
            return
        self._intervals = (record.iter + 1) // self.top_k_interval
        largest = {}
        for key, index in indices.items():
            optimizer = key.rsplit(":", 1)[0]
            parameter = self._names[optimizer][int(index)]
            largest[parameter] = record.values["top_gradnorm"][key]
        record.values["top_gradnorm"] = largest
        shown = ", ".join(f"{name} {norm:.3g}" for name, norm in largest.items())
        print_log(f"[amp_hooks] largest gradient norms: {shown}", logger="current")

    def state(self) -> dict[str, Any]:
        """Statistics of the adaptive clip."""
        return {name: clip.state() for name, clip in self._clips.items()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on with them, if the config still asks for the clip."""
        if self.adaptive_clip is not None:
            for name, statistics in state.items():
                self._clip(name).load_state(statistics)

    def _clip(self, name: str) -> AdaptiveClip:
        if name not in self._clips:
            self._clips[name] = AdaptiveClip(**(self.adaptive_clip or {}))
        return self._clips[name]

    def _note_largest(self, recorder: FlightRecorder, name: str, norms: Tensor) -> None:
        values, indices = torch.topk(norms, min(self.top_k, len(norms)))
        for i in range(len(values)):
            recorder.note("top_gradnorm", values[i], f"{name}:{i}")
            recorder.note("top_index", indices[i], f"{name}:{i}")

    def _name_nonfinite(self, record: IterationRecord) -> dict[str, Any]:
        """Which gradients were not finite; reads the device, after an incident.

        None where more than they was not: all are NaN, by that or by StepGuardHook.
        """
        if not record.verdict.is_of_the_scale:
            return {}
        bad = []
        for name, found_inf in record.values.get("found_inf", {}).items():
            if found_inf and name in self._norms:
                norms = self._norms[name].tolist()
                bad += [
                    parameter
                    for parameter, norm in zip(self._names[name], norms)
                    if not math.isfinite(norm)
                ]
        if not bad:
            return {}
        return dict(nonfinite_grads=bad[:_NAMED], nonfinite_grads_total=len(bad))

    def _grouped(self, names: list[str], device: torch.device) -> dict[str, Tensor]:
        """Indices of each group's parameters, kept on the device."""
        grouped: dict[str, list[int]] = {}
        for i, name in enumerate(names):
            group = name.split(".", 1)[0]
            if self.groups:
                matching = (
                    group
                    for group, patterns in self.groups.items()
                    if any(fnmatchcase(name, p) for p in patterns)
                )
                group = next(matching, "")
            if group:
                grouped.setdefault(group, []).append(i)
        return {g: torch.tensor(i, device=device) for g, i in grouped.items()}


def _join(optimizer: str, group: str) -> str:
    """The group's name; with several optimizers, the optimizer's before it."""
    return ".".join(part for part in (optimizer, group) if part)
