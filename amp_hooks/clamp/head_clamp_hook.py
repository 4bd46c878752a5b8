"""Run the classifier layers in FP32 and bound their output."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from mmengine.logging import print_log
from mmengine.runner import Runner
from torch import nn

from ..engine.checks import (
    check_bool,
    check_choice,
    check_int,
    check_number,
    check_patterns,
)
from ..engine.hook import AmpHook, check_targets
from ..engine.messages import warn
from ..engine.named import named_modules
from ..engine.out_of_memory import taken_back
from ..engine.recorder import IterationRecord
from ..engine.run import bare_model
from ..engine.runtime import Runtime
from ..engine.verdict import Verdict
from ..monitor.logit_watch import LogitWatch
from ..registry import HOOKS
from .head_guard import HeadGuard
from .trigger import LIMIT, beyond_trigger, check_trigger, in_fp16

_FORWARD_BAD = (Verdict.FORWARD_NONFINITE, Verdict.RAISED)


@HOOKS.register_module()
class HeadClampHook(AmpHook):
    """Protects a classification head: FP32 arithmetic, bounded logits, FP32 losses.

    While it is on, the classifier layers run with autocast switched off on float
    inputs, their output is clamped to ``[-limit, limit]``, and the head's
    ``loss_by_feat`` or ``loss_and_target`` runs with autocast off on float inputs. It
    does by config what mmdet 2.x users did by subclassing a head (``force_fp32`` and a
    clamp of cls_score). Inside the limit the clamp changes no value and no gradient.
    Evaluation is never touched.

    The layers are found as in :class:`ClsScoreMonitorHook`, so ``when='always'``
    without ``targets`` begins with the second iteration. With several processes each
    decides on its own logits; rank 0 reports.

    **When it is on.** With ``when='triggered'`` it is switched on by what an iteration
    showed, for the next one: logits at the ``trigger``, non-finite losses or logits (or
    an exception because of NaN), or an ``early_warning``, which only
    :class:`ClsScoreMonitorHook` in the same config gives. It is switched off after
    ``release_after`` iterations in a row that were finite, with every ``|logit|``
    inside the limit. Between limit and trigger it stays what it is.

    **Other modules.** ``targets`` may name any module that returns floating-point
    tensors, to protect a residual sum before a norm, say. A module runs in FP32 as a
    whole and returns float32, also under FP16 autocast. Of matches inside one another
    the outermost that is called is cast and clamped, but every match is measured:
    naming fewer is faster. A -inf stays what it is, as it may mask positions, except in
    a linear layer or convolution, where it is an overflow. For limits of its own, put a
    second HeadClampHook into the config.

    Args:
        limit (float): Largest ``|logit|`` let through. A sigmoid is 0 or 1 to FP32
            precision beyond about 17, a softmax beyond about 104. Defaults to 100.0.
        mode (str): The gradient beyond the limit. 'soft': zero only where it would
            drive the logit further out, so that the layer can find its way back.
            'hard': zero, which keeps a classifier dead whose logits are all out there.
            The values are the same. Defaults to 'soft'.
        when (str): 'triggered' switches it on by need, 'always' keeps it on. Defaults
            to 'triggered'.
        trigger (float or dict, optional): With 'triggered': a ``|logit|`` above this
            switches it on. Or ``dict(headroom_bits=6.0)``: so many doublings below the
            largest number of the precision that the layer computes in. Defaults to
            None: 1000 where that is FP16, 6 doublings below its largest number, or 8
            times what the layer began with, if that is more, but 16384 at most; in BF16
            and FP32, where such logits overflow nothing, no magnitude does it.
        early_warning (bool): With 'triggered': an early warning switches it on, where
            the layers compute in FP16. Defaults to True.
        release_after (int): With 'triggered': so many iterations in a row that are
            finite, with all logits inside the limit, switch it off. Defaults to 200.
        targets (str or Sequence[str], optional): fnmatch patterns over module names, in
            place of the search. Defaults to None.

    Raises:
        ValueError: At the start of training, if a pattern matches no module.

    Examples:
        >>> custom_hooks = [dict(type='amp_hooks.HeadClampHook')]
        >>> custom_hooks = [
        ...     dict(type='amp_hooks.HeadClampHook', when='always', limit=50.0)]
        >>> # Against FP16 overflow in the feed-forward networks of a DETR; '*.ffns.*'
        >>> # where they are built from mmcv's BaseTransformerLayer.
        >>> custom_hooks = [
        ...     dict(type='amp_hooks.HeadClampHook', when='always', limit=60000.0,
        ...          targets='*.ffn')]
    """

    priority = 35  # after the monitors, before RollbackHook

    def __init__(
        self,
        limit: float = LIMIT,
        mode: str = "soft",
        when: str = "triggered",
        trigger: float | dict[str, float] | None = None,
        early_warning: bool = True,
        release_after: int = 200,
        targets: str | Sequence[str] | None = None,
    ) -> None:
        owner = "HeadClampHook"
        self.limit = check_number(owner, "limit", limit, above=0)
        self.mode = check_choice(owner, "mode", mode, ("hard", "soft"))
        self.when = check_choice(owner, "when", when, ("always", "triggered"))
        least = self.limit if self.when == "triggered" else None
        self.trigger = check_trigger(owner, trigger, least)
        self.early_warning = check_bool(owner, "early_warning", early_warning)
        self.release_after = check_int(owner, "release_after", release_after, 1)
        self.targets = check_patterns(owner, "targets", targets)
        self.active = self.when == "always"
        self.since: int | None = None  # iteration in which it was switched on
        self.clean = 0
        self.first: dict[str, float] = {}  # largest |logit| by layer, in the beginning
        self._no_room = False  # for losses in FP32
        self._warned = False
        self._layers: list[str] = []
        self._guard: HeadGuard | None = None

    def before_run(self, runner: Runner) -> None:
        """Refuse a pattern that matches nothing."""
        super().before_run(runner)
        check_targets(self, self.targets, runner)

    def attach(self, runner: Runner, runtime: Runtime) -> None:
        """Guard the named layers, or those that the first iteration shows."""
        model = bare_model(runner)
        guard = HeadGuard(
            runtime.recorder, self.limit, self.mode == "soft", self.guarded
        )
        self._guard = guard
        self.undo.callback(guard.remove)
        self.undo.callback(self._clamps_nothing, runner, runtime)

        def on_layer(name: str, module: nn.Module) -> None:
            self._layers.append(name)
            guard.add(model, name)

        def on_event(line: dict[str, Any]) -> None:
            self._warned |= line["event"] == "early_warning"

        runtime.listeners.append(self.guarded(on_event))
        runtime.clamp_limits.append(self.limit)
        runtime.errors.attach(runner)
        no_room = partial(taken_back, runtime, partial(self._give_up, runner, runtime))
        runtime.errors.handlers.append(self.guarded(no_room, None))
        # After a resume the layers are known, and guarded from the first iteration.
        names = dict(named_modules(model))
        known, self._layers = [n for n in self._layers if n in names], []
        self._watch = runtime.watch_forward(LogitWatch)
        self._watch.watch(model, self.targets or known, self.guarded(on_layer))
        if self.active and self.since is None:
            self.since = runner.iter
        self._apply(runner, runtime)

    def _clamps_nothing(self, runner: Runner, runtime: Runtime) -> None:
        """After a failure infinities in its layers are no longer harmless."""
        if self in runtime.failures.off:
            self.active = False
            self._apply(runner, runtime)
            runtime.clamp_limits.remove(self.limit)

    def after_record(
        self, runner: Runner, runtime: Runtime, record: IterationRecord
    ) -> None:
        """Switch on by need, off after a clean stretch."""
        if self.when == "triggered" and self._layers:
            self._decide(runtime, record)
        if self.active or (self._guard is not None and self._guard.on):
            self._apply(runner, runtime)
        # Of several clamps in one config, the one that is on.
        active = max(float(self.active), record.get("clamp_active") or 0.0)
        record.put("clamp_active", active)
        limits = [self.limit, *record.all("clamp_limit")]
        record.put("clamp_limit", min(limits))

    def state(self) -> dict[str, Any]:
        """Whether it is on, since when, for how many clean iterations, and where."""
        return dict(
            active=self.active,
            since=self.since,
            clean=self.clean,
            layers=list(self._layers),
            first=dict(self.first),
            **(dict(no_room=True) if self._no_room else {}),
        )

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on as before, unless the config now says ``when='always'``."""
        since, clean, layers = state["since"], int(state["clean"]), state["layers"]
        self.active = bool(state["active"]) or self.when == "always"
        self.since = since if since is None else int(since)
        self.clean = clean
        self._no_room = bool(state.get("no_room"))
        self._layers = list(layers)
        self.first = {str(n): float(v) for n, v in state.get("first", {}).items()}

    def _decide(self, runtime: Runtime, record: IterationRecord) -> None:
        warned, self._warned = self._warned and self.early_warning, False
        of_all = record.values.get("logit_absmax", {})
        logits = {n: of_all[n] for n in self._layers if n in of_all}
        absmax = max(logits.values(), default=0.0)
        largest = record.values.get("logit_limit", {})
        for name, value in logits.items():
            if math.isfinite(value):
                self.first.setdefault(name, value)
        reasons = {
            "non-finite forward": record.verdict in _FORWARD_BAD
            and not record.get("gave_up"),
            "large logits": beyond_trigger(self.trigger, logits, largest, self.first),
            "early warning": warned and any(map(in_fp16, largest.values())),
        }
        reason = next((text for text, holds in reasons.items() if holds), None)
        # While a clamp is on, infinities in its layers do not count in the verdict.
        nonfinite = set(self._watch.nonfinite_layers(record)) & set(self._layers)
        bad = reason or nonfinite or record.verdict.is_bad
        calm = not bad and absmax <= self.limit
        self.clean = self.clean + 1 if calm else 0
        if not self.active and reason and not self._no_room:
            self.active, self.since = True, record.iter
            runtime.emit(
                "clamp_on",
                record.iter,
                record.verdict,
                reason=reason,
                absmax=absmax,
                limit=self.limit,
            )
            warn(
                f"iteration {record.iter}: {reason} (largest |logit| {absmax:.4g}). "
                "From the next iteration on the classifier layers and losses run in "
                f"FP32, logits clamped to {self.limit:g}, until {self.release_after} "
                "iterations in a row are calm. If it stays on, lower the learning rate."
            )
        elif self.active and self.clean >= self.release_after:
            since = self._switch_off(runtime, record.iter, record.verdict)
            print_log(
                f"[amp_hooks] iteration {record.iter}: {self.clean} calm iterations; "
                f"the clamp that was on since iteration {since} is off.",
                logger="current",
            )
        if self.active and (nonfinite or absmax > self.limit):
            record.put("clamp_needed", 1.0)  # for RollbackHook

    def _switch_off(
        self, runtime: Runtime, iteration: int, verdict: Verdict, **why: str
    ) -> int | None:
        """Returns the iteration since when it was on."""
        since, self.active, self.since = self.since, False, None
        runtime.emit(
            "clamp_off",
            iteration,
            verdict,
            since=since,
            clean_iterations=self.clean,
            limit=self.limit,
            **why,
        )
        return since

    def _give_up(self, runner: Runner, runtime: Runtime, error: str) -> bool:
        """Memory ran out under a clamp that has come by itself: it stays away."""
        if not self.active or self.when == "always":
            return False
        self._no_room = True
        self._switch_off(runtime, runner.iter, runtime.verdict, gave_up=error)
        self._apply(runner, runtime)
        warn(
            f"iteration {runner.iter}: memory ran out while losses ran in FP32 "
            f"({error}). The clamp is off for good, and training goes on without it."
        )
        return True

    def _apply(self, runner: Runner, runtime: Runtime) -> None:
        if self._guard is not None:
            self._guard.on = self.active
        clamps = [h for h in runner.hooks if isinstance(h, HeadClampHook)]
        active = [clamp for clamp in clamps if clamp.active]
        runtime.forward.clamped = {name for clamp in active for name in clamp._layers}
