"""What rescue_benchmark.py compares: our ladder, and what else one could do."""

from __future__ import annotations

import copy
import math
import time
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner

from amp_hooks.engine.averaging import ema_hooks
from amp_hooks.engine.tensors import nonfinite_names
from amp_hooks.rollback.rollback_hook import RollbackHook


class RestoreLastEpochHook(Hook):
    """Goes back to the end of the last epoch if that was not finite.

    Much what Ultralytics' trainer does (ultralytics#22352), in an MMEngine loop: looked
    at once per epoch, everything but the learning rate restored, the epoch run again,
    nothing to restore in the first epoch, and an error after three attempts in a row.
    Looked at are the last loss and, more strictly than there, all that was learned:
    Ultralytics looks at the fitness, which a NaN in the EMA ruins.
    """

    attempts_allowed = 3

    def __init__(self) -> None:
        self._kept: dict[str, Any] | None = None
        self._attempts = 0
        self.undone: list[tuple[int, int]] = []  # first and last iteration

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Any = None,
    ) -> None:
        """Remember the loss."""
        self._loss = outputs["loss"].item()

    def after_train_epoch(self, runner: Runner) -> None:
        """Restore, or keep this epoch's state."""
        # The optimizer's state included, as in what Ultralytics saves.
        now = _state(runner)
        if math.isfinite(self._loss) and not nonfinite_names(now):
            self._attempts, self._kept = 0, copy.deepcopy(now)
            return
        if self._kept is None:
            return
        self._attempts += 1
        if self._attempts > self.attempts_allowed:
            raise RuntimeError(
                f"NaN persisted for {self.attempts_allowed} epochs (restore-last-epoch)"
            )
        _restore(runner, copy.deepcopy(self._kept))
        epoch = len(runner.train_loop.dataloader)
        self.undone.append((runner.iter - epoch, runner.iter - 1))
        runner.train_loop._max_epochs += 1  # this one is run again


def _state(runner: Runner) -> dict[str, Any]:
    state = dict(
        model=runner.model.state_dict(),
        optimizer=runner.optim_wrapper.state_dict(),
        schedulers=[s.state_dict() for s in runner.param_schedulers],
    )
    for i, hook in enumerate(ema_hooks(runner)):
        state[f"ema{i}"] = hook.ema_model.state_dict()
    return state


def _restore(runner: Runner, state: dict[str, Any]) -> None:
    runner.model.load_state_dict(state["model"])
    runner.optim_wrapper.load_state_dict(state["optimizer"])
    for scheduler, kept in zip(runner.param_schedulers, state["schedulers"]):
        scheduler.load_state_dict(kept)
    for i, hook in enumerate(ema_hooks(runner)):
        hook.ema_model.load_state_dict(state[f"ema{i}"])


class ObserveHook(Hook):
    """Which losses were finite, how long it took, and the last evaluation's mAP."""

    priority = 100  # after everybody

    def __init__(self) -> None:
        self.map = 0.0
        self.bad: list[int] = []
        self.undone_before: set[int] = set()  # iterations that began with a rollback
        self._rollbacks = 0
        self.wall = self.cpu = 0.0
        self.iters = 0

    def before_train(self, runner: Runner) -> None:
        """Start the clocks."""
        self._began = time.perf_counter(), time.process_time()

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        """Note a rollback since the last iteration."""
        if _rollbacks(runner) > self._rollbacks:
            self.undone_before.add(runner.iter)

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Any = None,
    ) -> None:
        """Note the loss; the clocks run over all that hooks did in between."""
        if outputs is None or not math.isfinite(outputs["loss"].item()):
            self.bad.append(runner.iter)
        self._rollbacks = _rollbacks(runner)
        self.iters = runner.iter + 1
        self.wall = time.perf_counter() - self._began[0]
        self.cpu = time.process_time() - self._began[1]

    def after_val_epoch(
        self, runner: Runner, metrics: dict[str, float] | None = None
    ) -> None:
        """Note the mAP: 0 where nothing is found, for mmdet gives none then."""
        value = float((metrics or {}).get("coco/bbox_mAP", 0.0))
        self.map = value if math.isfinite(value) and value >= 0 else 0.0


def _rollbacks(runner: Runner) -> int:
    return sum(h.rollbacks for h in runner.hooks if isinstance(h, RollbackHook))
