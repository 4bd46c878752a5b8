"""Watch the unscaled gradient norm."""

from __future__ import annotations

from fnmatch import fnmatchcase

from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import Tensor

from ..core.checks import check_patterns, match_names
from ..core.gradnorm import group_norms
from ..registry import HOOKS
from ..runtime import Runtime, bare_model
from ..step_tap import trained_parameters
from .base import AmpHook


@HOOKS.register_module()
class GradNormMonitorHook(AmpHook):
    """Records the L2 norm of the gradients at each optimizer step.

    Unscaled (the loss scale is divided out of the norm, the gradients stay as they
    are), before clipping, without needing ``clip_grad``, and once per step under
    gradient accumulation. The total comes with one norm per group of parameters.

    Args:
        groups (dict[str, str or list[str]], optional): Name of a group to fnmatch
            patterns over parameter names. A parameter belongs to the first group that
            it matches. Defaults to None: one group per top-level child of the model
            (``backbone``, ``neck``, ``rpn_head``, ...).

    Raises:
        ValueError: At the start of training, if a pattern matches no parameter.

    Examples:
        >>> custom_hooks = [dict(type='amp_hooks.GradNormMonitorHook')]
        >>> custom_hooks = [
        ...     dict(type='amp_hooks.GradNormMonitorHook',
        ...          groups=dict(cls='*cls*', rest='*'))]
    """

    priority = 30

    def __init__(self, groups: dict[str, str | list[str]] | None = None) -> None:
        if groups is not None and not isinstance(groups, dict):
            raise TypeError(
                "GradNormMonitorHook: groups must be a dict of names to patterns, such "
                f"as dict(head='*_head.*'), got {groups!r}."
            )
        self.groups = {
            name: check_patterns("GradNormMonitorHook", f"groups[{name!r}]", patterns)
            for name, patterns in (groups or {}).items()
        }
        self._indices: dict[str, dict[str, list[int]]] = {}

    def attach(self, runner: Runner, runtime: Runtime) -> None:
        """Listen to the gradients of every optimizer."""
        names = {id(p): n for n, p in bare_model(runner).named_parameters()}
        for group, patterns in self.groups.items():
            argument = f"groups[{group!r}]"
            match_names(
                type(self).__name__, argument, patterns, names.values(), "parameter"
            )

        def on_gradients(
            name: str, wrapper: OptimWrapper, norms: Tensor, scale: Tensor | None
        ) -> None:
            if name not in self._indices:
                params = trained_parameters(wrapper)
                self._indices[name] = self._grouped(
                    [names.get(id(p), "other") for p in params]
                )
            by_group = group_norms(norms, self._indices[name], scale)
            for group, norm in by_group.items():
                runtime.recorder.note("gradnorm", norm, _join(name, group))

        runtime.tap.listeners.append(on_gradients)

    def _grouped(self, names: list[str]) -> dict[str, list[int]]:
        grouped: dict[str, list[int]] = {}
        for i, name in enumerate(names):
            group = name.split(".", 1)[0]
            if self.groups:
                group = next(
                    (
                        g
                        for g, patterns in self.groups.items()
                        if any(fnmatchcase(name, p) for p in patterns)
                    ),
                    "",
                )
            if group:
                grouped.setdefault(group, []).append(i)
        return grouped


def _join(optimizer: str, group: str) -> str:
    """The group's name; with several optimizers, the optimizer's before it."""
    return ".".join(part for part in (optimizer, group) if part)
