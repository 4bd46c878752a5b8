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
from ..engine.named import named_parameters
from ..engine.recorder import IterationRecord
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
        self._indices: dict[str, dict[str, list[int]]] = {}
        self._norms: dict[str, list[float]] = {}  # of the steps of this iteration
        self._intervals = 0  # begun when the largest were last logged

    def attach(self, runner: Runner, runtime: Runtime) -> None:
        """Listen to the gradients of every optimizer."""
        self._intervals = runner.iter // self.top_k_interval
        names = {id(p): n for n, p in named_parameters(bare_model(runner))}
        for group, patterns in self.groups.items():
            argument = f"groups[{group!r}]"
            match_names(
                type(self).__name__, argument, patterns, names.values(), "parameter"
            )

        def on_gradients(name: str, wrapper: OptimWrapper, norms: Tensor) -> None:
            if len(self._names.get(name, ())) != len(norms):
                params = trained_parameters(wrapper)
                self._names[name] = [names.get(id(p), "other") for p in params]
                self._indices[name] = self._grouped(self._names[name])
            if self.adaptive_clip is not None:
                total = torch.linalg.vector_norm(norms)
                factor = self._clip(name).coefficient(total)
                multiply_gradients(trained_parameters(wrapper), factor)
                runtime.recorder.note("adaptive_clip", factor, name, reduce="min")

        runtime.tap.listeners.append(self.guarded(on_gradients))
        runtime.completers.append(self.guarded(self._complete))
        runtime.observers.append(self.guarded(self._name_nonfinite, {}))

    def after_record(
        self, runner: Runner, runtime: Runtime, record: IterationRecord
    ) -> None:
        """Add the clip line; log the largest gradients if they are due."""
        for name, wrapper in iter_wrappers(runner.optim_wrapper):
            if (max_norm := clip_max_norm(wrapper)) is not None:
                record.put("clip_max_norm", max_norm, name)
        # A step may be late for it, under gradient accumulation.
        intervals = (record.iter + 1) // self.top_k_interval
        if not (self._norms and self.top_k and intervals > self._intervals):
            return
        self._intervals = intervals
        largest: dict[str, float] = {}
        for name, norms in self._norms.items():
            pairs = list(zip(self._names[name], norms))
            # One that is not a number is larger than all.
            pairs.sort(key=lambda pair: (pair[1] != pair[1], pair[1]), reverse=True)
            largest.update(pairs[: self.top_k])
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

    def _complete(self, record: IterationRecord) -> None:
        """The norm of each group, of the norms that the record has of parameters."""
        self._norms.clear()
        for name, steps in record.vectors.get("grad_norms", {}).items():
            for norms in steps:
                self._norms[name] = norms
                for group, norm in group_norms(norms, self._indices[name]).items():
                    record.add("gradnorm", norm, _join(name, group))

    def _name_nonfinite(self, record: IterationRecord) -> dict[str, Any]:
        """Which gradients were not finite.

        None where more than they was not: all are NaN, by that or by StepGuardHook.
        """
        if not record.verdict.is_of_the_scale:
            return {}
        bad = []
        for name, found_inf in record.values.get("found_inf", {}).items():
            if found_inf and name in self._norms:
                bad += [
                    parameter
                    for parameter, norm in zip(self._names[name], self._norms[name])
                    if not math.isfinite(norm)
                ]
        if not bad:
            return {}
        return dict(nonfinite_grads=bad[:_NAMED], nonfinite_grads_total=len(bad))

    def _grouped(self, names: list[str]) -> dict[str, list[int]]:
        """Indices of each group's parameters."""
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
        return grouped


def _join(optimizer: str, group: str) -> str:
    """The group's name; with several optimizers, the optimizer's before it."""
    return ".".join(part for part in (optimizer, group) if part)
