"""Run the classifier layers in FP32 and bound their output."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from mmengine.runner import Runner
from torch import Tensor, nn

from ..core.checks import (
    check_choice,
    check_int,
    check_number,
    check_patterns,
)
from ..core.logits import clamp_logits
from ..core.recorder import IterationRecord
from ..core.trees import map_tensors
from ..core.verdict import Verdict
from ..registry import HOOKS
from ..runtime import Runtime, bare_model
from .base import AmpHook, check_targets

# Where mmdet heads turn predictions into losses: dense heads, and RoI heads.
_LOSS_METHODS = ("loss_by_feat", "loss_and_target")


@HOOKS.register_module()
class HeadClampHook(AmpHook):
    """Protects a classification head: FP32 arithmetic, bounded logits, FP32 losses.

    While it is on, the classifier layers run with autocast switched off on float
    inputs, their output is clamped to ``[-limit, limit]``, and the head's
    ``loss_by_feat`` or ``loss_and_target`` runs with autocast off on float inputs. It
    does by config what mmdet 2.x users did by subclassing a head (``force_fp32`` and a
    clamp of cls_score). Inside the limit the clamp changes no value and no gradient;
    outside, the gradient is zero. Evaluation is never touched.

    The layers are found as in :class:`ClsScoreMonitorHook`, so ``when='always'``
    without ``targets`` begins with the second iteration. With several processes each
    decides on its own logits.

    Args:
        limit (float): Largest |logit| let through. A sigmoid is 0 or 1 to FP32
            precision beyond about 17, a softmax beyond about 104. Defaults to 100.0.
        when (str): 'triggered' switches it on by need, 'always' keeps it on. Defaults
            to 'triggered'.
        trigger (float): With 'triggered': a |logit| above this, or an iteration with
            verdict FORWARD_NONFINITE, switches it on. 1000 is 6 doublings below the
            largest FP16 number. Defaults to 1000.0.
        release_after (int): With 'triggered': so many iterations in a row that are
            finite, with all logits inside the limit, switch it off. Defaults to 200.
        targets (str or Sequence[str], optional): fnmatch patterns over module names, in
            place of the search. Any module that returns floating-point tensors can be
            named. Defaults to None.

    Raises:
        ValueError: At the start of training, if a pattern matches no module.

    Examples:
        >>> custom_hooks = [dict(type='amp_hooks.HeadClampHook')]
        >>> custom_hooks = [
        ...     dict(type='amp_hooks.HeadClampHook', when='always', limit=50.0)]
    """

    priority = 35  # after the monitors, before RollbackHook

    def __init__(
        self,
        limit: float = 100.0,
        when: str = "triggered",
        trigger: float = 1000.0,
        release_after: int = 200,
        targets: str | Sequence[str] | None = None,
    ) -> None:
        owner = "HeadClampHook"
        self.limit = check_number(owner, "limit", limit, above=0)
        self.when = check_choice(owner, "when", when, ("always", "triggered"))
        self.trigger = check_number(owner, "trigger", trigger, above=0)
        self.release_after = check_int(owner, "release_after", release_after, 1)
        self.targets = check_patterns(owner, "targets", targets)
        if self.trigger < self.limit:
            raise ValueError(
                f"{owner}: trigger={trigger} must not be below limit={limit}: inside "
                "the limit there is nothing to clamp. Raise trigger or lower limit."
            )
        self.active = self.when == "always"
        self.clean = 0
        self._layers: list[str] = []
        self._undo: list[Callable[[], None]] = []

    def before_run(self, runner: Runner) -> None:
        """Refuse a pattern that matches nothing."""
        check_targets(self, self.targets, runner)

    def attach(self, runner: Runner, runtime: Runtime) -> None:
        """Guard the named layers, or those that the first iteration shows."""
        model = bare_model(runner)
        heads: set[str] = set()

        def guard(name: str, module: nn.Module) -> None:
            self._layers.append(name)
            self._guard_layer(runtime, name, module)
            for head_name, head in _owners(model, name):
                if head_name not in heads:
                    heads.add(head_name)
                    self._guard_losses(head)

        # After a resume the layers are known, and guarded from the first iteration.
        names = dict(model.named_modules())
        known, self._layers = [n for n in self._layers if n in names], []
        runtime.clamping = self.active
        runtime.logits.watch(model, self.targets or known, guard)

    def after_record(
        self, runner: Runner, runtime: Runtime, record: IterationRecord
    ) -> None:
        """Switch on by need, off after a clean stretch."""
        absmax = max(record.all("logit_absmax"), default=0.0)
        forward_bad = record.verdict is Verdict.FORWARD_NONFINITE
        if self.when == "triggered":
            calm = not forward_bad and absmax <= self.limit
            self.clean = self.clean + 1 if calm else 0
            if not self.active and (forward_bad or absmax > self.trigger):
                self.active = True
                reason = "non-finite forward" if forward_bad else "large logits"
                runtime.emit(
                    "clamp_on",
                    record.iter,
                    record.verdict,
                    reason=reason,
                    absmax=absmax,
                    limit=self.limit,
                )
            elif self.active and self.clean >= self.release_after:
                self.active = False
                runtime.emit(
                    "clamp_off",
                    record.iter,
                    record.verdict,
                    clean_iterations=self.clean,
                )
        runtime.clamping = self.active
        record.put("clamp_active", float(self.active))

    def after_train(self, runner: Runner) -> None:
        """Give the model back as it was."""
        super().after_train(runner)
        while self._undo:
            self._undo.pop()()

    def state(self) -> dict[str, Any]:
        """Whether it is on, for how many clean iterations, and on which layers."""
        return dict(active=self.active, clean=self.clean, layers=list(self._layers))

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on as before, unless the config now says ``when='always'``."""
        self.active = bool(state["active"]) or self.when == "always"
        self.clean = int(state["clean"])
        self._layers = list(state["layers"])

    def _guard_layer(self, runtime: Runtime, name: str, module: nn.Module) -> None:
        entered: list[torch.autocast] = []

        def before(module: nn.Module, args: Any, kwargs: Any) -> Any:
            if not self.active or not torch.is_grad_enabled():
                return None
            entered.append(_autocast_off(module))
            entered[-1].__enter__()
            return _as_float(args), _as_float(kwargs)

        def after(module: nn.Module, args: Any, output: Any) -> Any:
            if not entered:
                return None
            entered.pop().__exit__(None, None, None)

            def clamp(x: Tensor) -> Tensor:
                if not x.is_floating_point():
                    return x
                clamped, fraction = clamp_logits(x, self.limit)
                runtime.recorder.note("clamped", fraction, name)
                return clamped

            return map_tensors(clamp, output)

        handles = [
            module.register_forward_pre_hook(before, with_kwargs=True),
            # Also if the layer raises, or autocast would stay off for good.
            module.register_forward_hook(after, always_call=True),
        ]
        self._undo += [handle.remove for handle in handles]

    def _guard_losses(self, head: nn.Module) -> None:
        for method in _LOSS_METHODS:
            original = getattr(head, method, None)
            if original is None:
                continue

            def in_fp32(
                *args: Any, _original: Callable[..., Any] = original, **kwargs: Any
            ) -> Any:
                if not self.active:
                    return _original(*args, **kwargs)
                with _autocast_off(head):
                    return _original(*_as_float(args), **_as_float(kwargs))

            setattr(head, method, in_fp32)
            self._undo.append(functools.partial(delattr, head, method))


def _owners(model: nn.Module, layer: str) -> list[tuple[str, nn.Module]]:
    """The heads around a layer, innermost first."""
    parts = layer.split(".")
    paths = [".".join(parts[:i]) for i in range(len(parts) - 1, 0, -1)]
    owners = [(path, model.get_submodule(path)) for path in paths]
    return [(p, m) for p, m in owners if any(hasattr(m, x) for x in _LOSS_METHODS)]


def _autocast_off(module: nn.Module) -> torch.autocast:
    device = next((p.device.type for p in module.parameters()), "cpu")
    return torch.autocast(device, enabled=False)


def _as_float(tree: Any) -> Any:
    def cast(x: Tensor) -> Tensor:
        return x.float() if x.is_floating_point() else x

    return map_tensors(cast, tree)
