"""What the rules have to know about a run, beside its config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

MIXED = ("float16", "bfloat16")


def number(value: Any) -> float | None:
    """A number, NumPy's as well; None of anything else."""
    if isinstance(value, bool):
        return None
    return float(value) if isinstance(value, Real) else None


def whole_number(value: Any) -> int | None:
    """The same of a whole number."""
    if isinstance(value, bool):
        return None
    return int(value) if isinstance(value, Integral) else None


@dataclass(frozen=True)
class HookFacts:
    """One hook of the run.

    Attributes:
        kinds: Names of its class and of all that this is derived from.
        priority: A smaller number comes first.
        arguments: As the config gives them.
    """

    kinds: frozenset[str]
    priority: int
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class WrapperFacts:
    """One optimizer wrapper.

    Attributes:
        name: Of an OptimWrapperDict; '' if it is the only one.
        kind: Its class.
        dtype: 'float16' or 'bfloat16' with mixed precision, else ''.
        static_scale: The loss scale, if nothing in MMEngine ever changes it.
        clips: ``clip_grad`` is set.
        max_norm: That of ``clip_grad``, if there is one.
        clip_raises: It raises at a norm that is not finite.
        accumulate: Iterations to an optimizer step.
        optimizer: Class of the optimizer.
        lr: Its learning rate, before ``auto_scale_lr`` and schedulers.
    """

    name: str = ""
    kind: str = "OptimWrapper"
    dtype: str = ""
    static_scale: float | None = None
    clips: bool = False
    max_norm: float | None = None
    clip_raises: bool = False
    accumulate: int = 1
    optimizer: str = ""
    lr: float | None = None

    @property
    def key(self) -> str:
        """Where the config has it."""
        return "optim_wrapper" + (f".{self.name}" if self.name else "")


@dataclass(frozen=True)
class Facts:
    """A run, as far as it is known; ``None`` is unknown, and unknown is no finding.

    Attributes:
        world_size: Processes.
        batch_size: Images that each of them takes in an iteration.
        epoch_length: Iterations of an epoch.
        max_iters: Iterations of the run.
        iteration: Complete iterations at the start.
        resume: It goes on from a checkpoint.
        saved_ema: That checkpoint was written with an EMAHook.
        wrappers: Of the optimizers.
        hooks: In the order in which they run.
        path: Of the config file.
        classes: Of the data set to train on: how many.
    """

    world_size: int = 1
    batch_size: int | None = None
    epoch_length: int | None = None
    max_iters: int | None = None
    iteration: int = 0
    resume: bool = False
    saved_ema: bool | None = None
    wrappers: tuple[WrapperFacts, ...] = ()
    hooks: tuple[HookFacts, ...] = ()
    path: str | None = None
    classes: int | None = None

    def has(self, *kinds: str) -> bool:
        """Whether there is a hook of any of these classes."""
        return any(hook.kinds.intersection(kinds) for hook in self.hooks)

    def place(self, kind: str) -> int | None:
        """Where the first hook of that class stands in the order."""
        places = (i for i, hook in enumerate(self.hooks) if kind in hook.kinds)
        return next(places, None)
