"""The whole ladder in one line."""

from __future__ import annotations

import inspect
from typing import Any

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from mmengine.runner.priority import get_priority

from .clamp.head_clamp_hook import HeadClampHook
from .data.bad_batch_hook import BadBatchHook
from .data.box_sanity_hook import BoxSanityHook
from .engine.checks import check_known_arguments
from .engine.hook import AmpHook
from .engine.of_others import has, is_among
from .engine.run import iter_wrappers
from .engine.runtime import Runtime
from .forensics.forensics_hook import ForensicsHook
from .guard.step_guard_hook import StepGuardHook
from .health.health_hook import HealthHook
from .members import MEMBERS
from .monitor.cls_score_monitor_hook import ClsScoreMonitorHook
from .monitor.grad_norm_monitor_hook import GradNormMonitorHook
from .monitor.loss_scale_monitor_hook import LossScaleMonitorHook
from .panel.stability_panel_hook import StabilityPanelHook
from .precision.precision_fallback_hook import PrecisionFallbackHook
from .preflight.amp_preflight_hook import AmpPreflightHook
from .registry import HOOKS
from .rollback.rollback_hook import RollbackHook

_CLASSES: dict[str, type[AmpHook]] = {
    cls.__name__: cls
    for cls in (
        AmpPreflightHook,
        BadBatchHook,
        BoxSanityHook,
        ClsScoreMonitorHook,
        ForensicsHook,
        GradNormMonitorHook,
        HeadClampHook,
        HealthHook,
        LossScaleMonitorHook,
        PrecisionFallbackHook,
        RollbackHook,
        StabilityPanelHook,
        StepGuardHook,
    )
}
_SEVERAL = ("head_clamp",)  # members of which a run may have more than one


@HOOKS.register_module()
class StabilityHook(Hook):
    """The whole suite, from pre-flight and monitors to rollback, fallback and panel.

    One line beside whatever ``custom_hooks`` a config has already. When the run starts,
    each member takes its own place among the runner's hooks, as if it had been listed
    in ``custom_hooks``: same priorities, same checkpoints (a run can be resumed with
    the list in place of StabilityHook, and the other way round), same ledger.

    Each argument is a dict of that hook's arguments, True for its defaults, None or
    False to leave it out. The same config works in FP32, BF16 and FP16.

    **Order.** Of the priorities in an iteration, whatever the order in
    ``custom_hooks``; a smaller number comes first. The hooks of this package keep
    these numbers, and a test compares the table with a real run.

    ======== ======================= ==================================================
    Priority Hook                    Why there
    ======== ======================= ==================================================
    0        FaultInjectionHook      What it breaks, everybody else finds broken.
    0        StabilityHook           Its members are in place before others begin.
    10       RuntimeInfoHook         MMEngine's: losses and LR for the message hub.
    20       BoxSanityHook           Before anybody keeps the batch or its samples.
    30       LossScaleMonitorHook    Monitors measure before anybody acts.
    30       ClsScoreMonitorHook     Its early warning is for HeadClampHook.
    30       GradNormMonitorHook     It names the gradients for the ledger.
    32       StepGuardHook           Undoes the iteration before anybody decides on it
                                     and before anybody averages it.
    33       ForensicsHook           Runs a bad batch again as the iteration found it.
    34       BadBatchHook            Blames images by the verdict on the iteration,
                                     before anybody changes it.
    35       HeadClampHook           Needs the forward pass's verdict; RollbackHook may
                                     replace it by one on the state.
    38       HealthHook              Judges the run with what guard and clamp left of
                                     the iteration; RollbackHook acts on it.
    40       RollbackHook            EMAHook shall not average what is taken back.
    45       PrecisionFallbackHook   Counts RollbackHook's rollbacks.
    46       AmpPreflightHook        Looks at batch and model as all others left them.
    50       IterTimerHook           MMEngine's: its times include our work.
    50       DistSamplerSeedHook     MMEngine's: acts between epochs only.
    50       EMAHook                 MMEngine's: averages what was left standing. YOLOX
                                     and RTMDet say 49; where it says 40 or less, our
                                     hooks from there to 40 are called before it.
    60       LoggerHook              MMEngine's: its line follows our warnings.
    70       ParamSchedulerHook      MMEngine's: steps schedules already lowered.
    80       StabilityPanelHook      Publishes what all others have noted.
    90       CheckpointHook          MMEngine's: saves the state after all decisions.
    ======== ======================= ==================================================

    Args:
        boxes (dict or bool, optional): Of :class:`BoxSanityHook`. Defaults to True.
        loss_scale (dict or bool, optional): Of :class:`LossScaleMonitorHook`. Defaults
            to True.
        cls_score (dict or bool, optional): Of :class:`ClsScoreMonitorHook`. Defaults
            to True.
        grad_norm (dict or bool, optional): Of :class:`GradNormMonitorHook`. Defaults
            to True.
        step_guard (dict or bool, optional): Of :class:`StepGuardHook`. Defaults to
            True.
        forensics (dict or bool, optional): Of :class:`ForensicsHook`. Defaults to
            True.
        bad_batch (dict or bool, optional): Of :class:`BadBatchHook`. Defaults to True.
        head_clamp (dict, list[dict] or bool, optional): Of :class:`HeadClampHook`; a
            list for several clamps with targets and limits of their own. Defaults to
            True.
        health (dict or bool, optional): Of :class:`HealthHook`. Defaults to True.
        rollback (dict or bool, optional): Of :class:`RollbackHook`. Defaults to True.
        precision_fallback (dict, bool or str, optional): Of
            :class:`PrecisionFallbackHook`. With 'auto' it is left out, and the log says
            so, where it could never act: in an FP32 run, or without ``rollback``.
            Defaults to 'auto'.
        preflight (dict or bool, optional): Of :class:`AmpPreflightHook`. Defaults to
            True.
        panel (dict or bool, optional): Of :class:`StabilityPanelHook`. Defaults to
            True.

    Attributes:
        members: The hooks by argument; empty lists for those that are left out.

    Raises:
        TypeError, ValueError: A member that does not exist or has wrong arguments; at
            the start of the run, a hook of a member's class, or a second StabilityHook,
            beside this one in ``custom_hooks``.

    Examples:
        >>> custom_hooks = [dict(type='amp_hooks.StabilityHook')]
        >>> custom_hooks = [
        ...     dict(type='EMAHook', momentum=0.0002, priority=49),
        ...     dict(type='amp_hooks.StabilityHook',
        ...          rollback=dict(interval=1000), head_clamp=None)]

        On a command line, where MMEngine reads a list as text, it goes into the dict
        ``default_hooks`` under any new name, with arguments beside it:
        ``--cfg-options default_hooks.stability.type=amp_hooks.StabilityHook
        default_hooks.stability.rollback.interval=1000``
    """

    # The list of hooks is walked while the members join it: they must come later.
    priority = "HIGHEST"
    arguments: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> StabilityHook:
        """Refuse unknown arguments with a message that helps."""
        check_known_arguments(cls, kwargs)
        hook = super().__new__(cls)
        hook.arguments = kwargs
        return hook

    def __init__(
        self,
        boxes: dict | bool | None = True,
        loss_scale: dict | bool | None = True,
        cls_score: dict | bool | None = True,
        grad_norm: dict | bool | None = True,
        step_guard: dict | bool | None = True,
        forensics: dict | bool | None = True,
        bad_batch: dict | bool | None = True,
        head_clamp: dict | list[dict] | bool | None = True,
        health: dict | bool | None = True,
        rollback: dict | bool | None = True,
        precision_fallback: dict | bool | str | None = "auto",
        preflight: dict | bool | None = True,
        panel: dict | bool | None = True,
    ) -> None:
        arguments = locals()
        self._auto = precision_fallback == "auto"
        if self._auto:
            arguments["precision_fallback"] = True
        self.members = {name: build(name, arguments[name]) for name in MEMBERS}
        self._left_out = {
            name: "switched off" for name, hooks in self.members.items() if not hooks
        }
        self._joined = self._settled = False

    def before_run(self, runner: Runner) -> None:
        """Put the members in their places, once."""
        self._join(runner)
        # In a run that only validates or tests, the optimizer is not built.
        if isinstance(runner.optim_wrapper, OptimWrapper) and not self._settled:
            self._settled = True
            self._settle(runner)

    def before_load(self, runner: Runner) -> None:
        """Let the members come before a checkpoint is read, with FlexibleRunner."""
        self._join(runner)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Let the members see a checkpoint that is read before the run starts."""
        self._join(runner)

    def _join(self, runner: Runner) -> None:
        if self._joined:
            return
        self._check_others(runner)
        self._joined = True
        for hooks in self.members.values():
            for hook in hooks:
                # Behind this hook, so MMEngine comes to it in this very event.
                runner.register_hook(hook)

    def _check_others(self, runner: Runner) -> None:
        others = [hook for hook in runner.hooks if hook is not self]
        if any(isinstance(hook, StabilityHook) for hook in others):
            raise ValueError(
                "StabilityHook: there are two of them among the hooks. Keep one, and "
                "configure all members there."
            )
        for name, hooks in self.members.items():
            for hook in hooks:
                kind = type(hook)
                if any(isinstance(other, kind) for other in others):
                    raise ValueError(
                        f"StabilityHook: a {kind.__name__} stands beside it in "
                        f"custom_hooks, and {name} would be a second one. Move its "
                        f"arguments into StabilityHook({name}=dict(...)), or say "
                        f"{name}=None."
                    )
                if get_priority(hook.priority) < get_priority(self.priority):
                    raise ValueError(
                        f"StabilityHook: priority={self.priority!r} comes after "
                        f"{kind.__name__} ({hook.priority}), which it has to put in "
                        "place. Leave priority out."
                    )

    def _settle(self, runner: Runner) -> None:
        """See whether a fallback that was not asked for could act; say what is on."""
        failed = "it could not be seen whether there is something to leave"
        call = Runtime.of(runner).failures.call
        if self._auto and (
            why := call(self, self._why_no_fallback, runner, otherwise=failed)
        ):
            self._left_out["precision_fallback"] = why
            gone = self.members["precision_fallback"]
            runner.hooks[:] = [h for h in runner.hooks if not is_among(h, gone)]
            self.members["precision_fallback"] = []
        on = [name for name, hooks in self.members.items() if hooks]
        off = [f"{name} ({why})" for name, why in self._left_out.items()]
        print_log(
            f"[amp_hooks] StabilityHook: {', '.join(on) or 'nothing'} on"
            + (f"; off: {', '.join(off)}" if off else ""),
            logger="current",
        )

    def _why_no_fallback(self, runner: Runner) -> str:
        if not self.members["rollback"]:
            return "rollback is off, so there is nothing to count"
        wrappers = iter_wrappers(runner.optim_wrapper)
        if not any(has(wrapper, "cast_dtype") for _, wrapper in wrappers):
            kind = type(runner.optim_wrapper).__name__
            return f"{kind} computes in FP32, there is no mixed precision to leave"
        return ""


def build(name: str, value: Any) -> list[Any]:
    """The hooks that one argument of StabilityHook asks for.

    Raises:
        TypeError, ValueError: Names the argument, its value and what there is.
    """
    cls = _CLASSES[MEMBERS[name]]
    if value is None or value is False:
        return []
    several = name in _SEVERAL and isinstance(value, (list, tuple))
    hooks = []
    for entry in value if several else [value]:
        if entry is not True and not isinstance(entry, dict):
            first = list(inspect.signature(cls.__init__).parameters.values())[1]
            raise TypeError(
                f"StabilityHook: {name} must be a dict of {cls.__name__}'s arguments "
                f"such as dict({first.name}={first.default!r})"
                + (", a list of such dicts" if name in _SEVERAL else "")
                + f", True for its defaults, or None to leave it out, got {value!r}."
            )
        try:
            hooks.append(cls(**({} if entry is True else entry)))
        except (TypeError, ValueError) as e:
            raise type(e)(
                f"StabilityHook: {name}={entry!r} is wrong: {e} ({name}=None leaves it "
                "out.)"
            ) from None
    return hooks
