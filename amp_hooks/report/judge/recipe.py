"""What was configured: hooks, learning rate, warm-up, clipping and precision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...config_check.warmup import warmup_iters
from ...engine.config_syntax import is_pure_python
from ...engine.config_values import dig, items_of, plain_number
from ...engine.paste import hook_places, own_hooks
from ...engine.words import Line
from ...members import MEMBERS
from ..read.history import RunHistory
from .operators import without_bf16


@dataclass(frozen=True)
class Recipe:
    """The training recipe, as far as the config tells.

    Attributes:
        known: There is a config at all.
        lr: Learning rate of the optimizer, or ``None``.
        warmup: Iterations of warm-up; 0 if there is none, infinity if it is counted in
            epochs.
        schedule: The schedulers in words.
        clip: ``max_norm`` or ``clip_value`` of ``clip_grad``; ``None`` without it.
        wrapper: ``type`` of the optim_wrapper.
        half: ``float16``, ``bfloat16``, or ``float32`` without mixed precision.
        ema: EMAHook is attached.
        box_filter: FilterAnnotations is in the training pipeline.
        filter_cfg: Of the training data set.
        own_hooks: Arguments of this package's hooks in the config, by class.
        places: Under which name of default_hooks they stand, if they do.
        static_scale: The loss scale is a number that nothing in MMEngine changes.
        optim_wrapper: As the config has it.
        without_bf16: What the detector computes with that has no BF16.
        pure_python: The config was written with classes, not with their names.
        names: Variables of the config.
    """

    known: bool
    lr: float | None
    warmup: float
    schedule: str
    clip: float | None
    wrapper: str
    half: str
    ema: bool
    box_filter: bool
    filter_cfg: Any
    own_hooks: dict[str, dict[str, Any]]
    places: dict[str, str]
    static_scale: bool
    optim_wrapper: dict[str, Any]
    without_bf16: list[str]
    pure_python: bool
    names: frozenset[str]

    @property
    def whole_suite(self) -> bool:
        """StabilityHook is in the config."""
        return "StabilityHook" in self.own_hooks


def read_recipe(run: RunHistory) -> Recipe:
    """The recipe of a run."""
    cfg = run.config
    wrapper = cfg.get("optim_wrapper")
    kind = str(dig(wrapper, "type") or "OptimWrapper")
    lr = dig(wrapper, "optimizer", "lr")
    clip = dig(wrapper, "clip_grad", "max_norm") or dig(
        wrapper, "clip_grad", "clip_value"
    )
    dataset = dig(cfg, "train_dataloader", "dataset")
    schedulers = items_of(cfg.get("param_scheduler"))
    hooks = [*items_of(cfg.get("custom_hooks"))]
    hooks += items_of(list((cfg.get("default_hooks") or {}).values()))
    return Recipe(
        known=bool(cfg),
        lr=float(lr) if isinstance(lr, (int, float)) else None,
        warmup=warmup_iters(schedulers),
        schedule="; ".join(map(_schedule_text, schedulers)) or "constant",
        clip=float(clip) if isinstance(clip, (int, float)) else None,
        wrapper=kind.rsplit(".", 1)[-1],
        half=precision(run.start_line, cfg),
        ema=any("EMA" in str(hook.get("type")) for hook in hooks),
        box_filter=_holds(dataset, "FilterAnnotations"),
        filter_cfg=_find(dataset, "filter_cfg"),
        own_hooks=own_hooks(cfg) or _entries(run),
        places=hook_places(cfg),
        static_scale=plain_number(dig(wrapper, "loss_scale")) is not None,
        optim_wrapper=dict(wrapper) if isinstance(wrapper, dict) else {},
        without_bf16=without_bf16(run),
        pure_python=is_pure_python(cfg),
        names=frozenset(cfg),
    )


def _schedule_text(scheduler: dict[str, Any]) -> str:
    unit = "epochs" if scheduler.get("by_epoch", True) else "iterations"
    span = f"{scheduler.get('begin', 0)} to {scheduler.get('end') or 'the end'}"
    text = f"{str(scheduler.get('type')).rsplit('.', 1)[-1]}, {unit} {span}"
    if "milestones" in scheduler:
        text += f", at {', '.join(map(str, scheduler['milestones']))}"
    if "start_factor" in scheduler:
        text += f", from x{scheduler['start_factor']}"
    return text


def precision(start_line: Line | None, cfg: Mapping[str, Any]) -> str:
    """``float16``, ``bfloat16``, or ``float32`` without mixed precision.

    Args:
        start_line: Of a ledger, if there is one.
        cfg: The config of that start, or an empty one.
    """
    kind = str(dig(cfg, "optim_wrapper", "type") or "OptimWrapper")
    optimizers = (start_line or {}).get("optimizers")
    text = str(optimizers or "") or str(dig(cfg, "optim_wrapper", "dtype") or "")
    for name in ("bfloat16", "float16"):
        if name in text:
            return name
    return "float16" if "Amp" in kind and "float32" not in text else "float32"


def _holds(tree: Any, name: str) -> bool:
    """Whether a config has a part of that type, however deep."""
    if isinstance(tree, dict):
        own = str(tree.get("type", "")).rsplit(".", 1)[-1] == name
        return own or any(_holds(value, name) for value in tree.values())
    return isinstance(tree, (list, tuple)) and any(_holds(x, name) for x in tree)


def _find(tree: Any, key: str) -> Any:
    """The first setting of that name, however deep; data sets are wrapped in others."""
    if isinstance(tree, dict):
        if key in tree:
            return tree[key]
        tree = list(tree.values())
    if isinstance(tree, (list, tuple)):
        return next((x for x in (_find(t, key) for t in tree) if x is not None), None)
    return None


def active_hooks(run: RunHistory) -> dict[str, dict[str, Any]]:
    """Class names (numbered, if there are several) and the arguments given to each.

    From the ledger's ``start`` line; of a ledger without one, from the config.
    """
    if run.start_line:
        hooks = run.start_line.get("hooks")
        return dict(hooks) if isinstance(hooks, dict) else {}
    return own_hooks(run.config)


def _entries(run: RunHistory) -> dict[str, dict[str, Any]]:
    """The active hooks as they were given: members of StabilityHook by it."""
    active = active_hooks(run)
    suite = (run.start_line or {}).get("suite")
    if not isinstance(suite, dict):
        return active
    members = MEMBERS.values()
    beside = {k: v for k, v in active.items() if not (k in members or "." in k)}
    return dict(beside, StabilityHook=suite)


def argument_of(run: RunHistory, hook: str, name: str, default: float) -> float:
    """A number that a hook was given, by itself or within StabilityHook."""
    hooks = active_hooks(run)
    member = next((m for m, h in MEMBERS.items() if h == hook), "")
    given = dig(hooks, hook, name)
    if given is None:
        given = dig(hooks, "StabilityHook", member, name)
    known = plain_number(given)
    return default if known is None else known


def remedy(run: RunHistory, name: str) -> float | None:
    """The number that pre-flight gave this run last, ``lr`` or ``warmup`` for example.

    Not of every start: what is over at a resume is not looked at again.
    """
    lines = run.having("preflight", lost=False)
    told = [plain_number(dig(h.line, "remedies", name)) for h in lines]
    return next((number for number in reversed(told) if number is not None), None)


def has_hook(run: RunHistory, name: str) -> bool:
    """Whether a hook of that class was active, by itself or within StabilityHook."""
    hooks = active_hooks(run)
    if any(key.split(".")[0] == name for key in hooks):
        return True
    left_out = {k for k, v in hooks.get("StabilityHook", {}).items() if not v}
    members = {member for key, member in MEMBERS.items() if key not in left_out}
    return "StabilityHook" in hooks and name in members
