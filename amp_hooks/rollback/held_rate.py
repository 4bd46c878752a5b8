"""Keep a change of the learning rate against those who write it themselves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor


class HeldRate:
    """Multiplies what others write into the param groups.

    :func:`scale_lr` changes a run's schedulers with the learning rate. A hook that
    computes it anew from numbers of its own, each iteration as MMYOLO's
    YOLOv5ParamSchedulerHook or each epoch, knows nothing of that and would end a cut
    within an iteration. So before each step whatever is in a group is looked at: what
    was left there, and what a scheduler of the run has written since, is right already
    (they are the very objects). Anything else somebody else has written. Whether it
    knew of the change shows at the first such time: it goes on from what was left, or
    from what had been there before. In a new process that is found out anew, for a
    writer may begin with the changed ``initial_lr`` of the checkpoint.

    Learning rates that are tensors are passed over: to read them may wait.

    Attributes:
        factor: What others write is multiplied by it.
    """

    def __init__(self) -> None:
        self.factor = 1.0
        self._pending = 1.0  # of which it is not known whether they know
        self._left: list[Any] = []
        self._size: list[float] = []  # of `_left`; of a 0, what there was before it
        self._steps: dict[int, Any] = {}  # by scheduler
        self._read = False  # `_left` was read from a checkpoint

    @property
    def active(self) -> bool:
        """Whether anything has to be looked at."""
        return self.factor != 1 or self._pending != 1

    def changed(
        self, groups: Sequence[Mapping[str, Any]], schedulers: Iterable[Any], by: float
    ) -> None:
        """The learning rate was multiplied, with all that schedulers know of it.

        Args:
            groups: Param groups, as they are now.
            schedulers: Of the run.
            by: The factor; 1 if param groups were only exchanged.
        """
        self._pending *= by
        self._size = [lr * by for lr in self._size]
        self._leave(groups, schedulers)

    def hold(
        self, groups: Sequence[dict[str, Any]], schedulers: Iterable[Any]
    ) -> tuple[bool, float | None]:
        """Multiply what others have written since the last time.

        Returns:
            Whether anything was changed; and the factor, if it has just become another
            one.
        """
        if not self.active:
            return False, None
        schedulers = list(schedulers)
        written, told = self._written(groups, schedulers), None
        if self._pending != 1 and (known := self._know(written)) is not None:
            if not known:
                told = self.factor = _exact(self.factor * self._pending)
            self._pending = 1.0
        changes = bool(written) and self.factor != 1
        for group, _ in written if changes else ():
            group["lr"] = float(group["lr"]) * self.factor
        self._leave(groups, schedulers)
        return changes, told

    def resumed(
        self, groups: Sequence[dict[str, Any]], schedulers: Iterable[Any], total: float
    ) -> None:
        """The param groups are those of a checkpoint, and nobody has written yet.

        What others had written before it was saved is held as it was then.

        Args:
            groups: Param groups.
            schedulers: Of the run.
            total: What the learning rate has been multiplied by so far.
        """
        schedulers, known = list(schedulers), bool(self._left)
        for group, _ in self._written(groups, schedulers) if known else ():
            group["lr"] = float(group["lr"]) * self.factor
        self._leave(groups, schedulers)
        self.factor, self._pending = 1.0, total if known else 1.0

    def state(self) -> dict[str, Any]:
        """What was left, as plain numbers."""
        left = [None if lr is None else float(lr) for lr in self._left]
        return dict(left=left, factor=self.factor)

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state` gave; before :meth:`resumed`."""
        self._left, self._read = list(state["left"]), True
        self._size = [lr or 0.0 for lr in self._left]
        self.factor = float(state["factor"])

    def _written(
        self, groups: Sequence[dict[str, Any]], schedulers: Sequence[Any]
    ) -> list[tuple[dict[str, Any], float]]:
        """Groups that somebody else wrote to, and what had been left there."""
        rates = _rates(groups)
        if len(rates) != len(self._left):  # a group was added
            return []
        own = [
            value
            for s in schedulers
            if getattr(s, "param_name", None) == "lr"
            and hasattr(s, "get_last_value")
            and (self._read or self._steps.get(id(s)) != _steps(s))
            for value in s.get_last_value()
            if not isinstance(value, Tensor)
        ]
        found = []
        for group, lr, left, size in zip(groups, rates, self._left, self._size):
            if lr is None or left is None or lr is left or any(lr is v for v in own):
                continue
            if self._read and (lr == left or lr in own):
                continue
            found.append((group, size))
        return found

    def _know(self, written: Sequence[tuple[dict[str, Any], float]]) -> bool | None:
        """Whether they knew of the change; ``None`` if that does not show."""
        knowing = ignorant = 0.0
        for group, left in written:
            now = float(group["lr"]) * self.factor
            if now > 0 and left > 0:
                knowing += abs(math.log(now / left))
                ignorant += abs(math.log(now * self._pending / left))
        return None if knowing == ignorant else knowing < ignorant

    def _leave(
        self, groups: Sequence[Mapping[str, Any]], schedulers: Iterable[Any]
    ) -> None:
        self._left, self._read = _rates(groups), False
        before = self._size if len(self._size) == len(groups) else [0.0] * len(groups)
        self._size = [
            float(lr or size or group.get("initial_lr") or 0.0)
            for lr, size, group in zip(self._left, before, groups)
        ]
        self._steps = {id(s): _steps(s) for s in schedulers}


def _steps(scheduler: Any) -> Any:
    return getattr(scheduler, "last_step", None)


def _rates(groups: Sequence[Mapping[str, Any]]) -> list[Any]:
    rates = [group.get("lr") for group in groups]
    return [None if isinstance(lr, Tensor) else lr for lr in rates]


def _exact(factor: float) -> float:
    return 1.0 if abs(factor - 1.0) < 1e-9 else factor
