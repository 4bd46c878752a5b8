"""What rollbacks do to the learning rate of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import Tensor

from ..engine import private
from ..engine.messages import WarnOnce, warn
from ..engine.run import iter_wrappers, known_rates
from . import messages
from .held_rate import HeldRate
from .learning_rate import TemporaryLR, recovered, scale_lr, warmup_factor
from .log_history import replace_latest


class LRPolicy:
    """Lowers the learning rate, lets it rise to that, and lets it recover.

    Args:
        factor: Multiplies it at each rollback.
        warmup_iters: Iterations of the re-warm-up after one.
        recover_after: Healthy iterations after which it is doubled; ``None``: never.
        keep_after: As :class:`LRTrust`'s.

    Attributes:
        total: What it has been multiplied by for good.
        warmup_iters: As given.
        trust: Whether it would be to blame for an incident.
    """

    def __init__(
        self,
        factor: float,
        warmup_iters: int,
        recover_after: int | None,
        keep_after: int | None,
    ) -> None:
        self._factor = factor
        self.warmup_iters, self._recover_after = warmup_iters, recover_after
        self.total = self._before = 1.0  # before: the last rollback
        self.trust = LRTrust(keep_after)
        self._clean = 0  # healthy iterations since it changed
        self._since: int | None = None  # the rollback
        self._temporary = TemporaryLR()
        self._held = HeldRate()
        self._warn = WarnOnce()

    def attach(self, runner: Runner) -> Callable[[str, OptimWrapper], None]:
        """Training is about to begin, resumed or not.

        Returns:
            What is to be called before each optimizer step.
        """
        self._held.resumed(all_param_groups(runner), all_schedulers(runner), self.total)

        def before_step(name: str, wrapper: OptimWrapper) -> None:
            self.begin_iteration(runner)

        return before_step

    def rolled_back(self, runner: Runner, lower: bool, rise: float = 1.0) -> None:
        """After a rollback; counting begins anew.

        Args:
            runner: The run.
            lower: It is to blame.
            rise: It over the highest that has gone well. If that is more than the
                factor takes back, all of it is taken back.
        """
        self._clean = 0
        self.trust.begin_anew()
        self._hold(runner)
        self._before = self.total
        if lower:
            self._since = runner.iter
            self._change(runner, min(self._factor, 1.0 / rise))
        else:
            self._note(runner, 1.0)

    def give_back(self, runner: Runner) -> None:
        """It was not to blame for the last rollback: as before that, at once."""
        self._temporary.undo()
        self._since = None
        if self.total != self._before:
            self._change(runner, self._before / self.total)
            self.total = self._before  # exactly

    def begin_iteration(self, runner: Runner) -> None:
        """Apply all this; after everything that copies the learning rate.

        Called before each step again, for hooks that come later may write it.
        """
        self._temporary.undo()
        self._hold(runner)
        if (factor := self._warmup(private.iteration(runner))) != 1:
            self._temporary.apply(all_param_groups(runner), factor)

    def end_iteration(self) -> None:
        """Take the warm-up back; before everything that changes the learning rate."""
        self._temporary.undo()

    def healthy(self, runner: Runner, iterations: int) -> bool:
        """Healthy iterations have passed; whether the learning rate was raised."""
        self._clean += iterations
        factor = self._warmup(private.iteration(runner))
        self.trust.healthy(_rates(runner, factor), iterations)
        enough = self._recover_after is not None and self._clean >= self._recover_after
        if self.total == 1 or not enough:
            return False
        total = recovered(self.total)
        self._change(runner, total / self.total)
        self.total = total  # exactly 1 in the end
        return True

    def now(self, iteration: int) -> float:
        """The factor in that iteration, warm-up included."""
        return self.total * self._warmup(iteration)

    def state(self) -> dict[str, Any]:
        """Plain numbers."""
        return dict(
            total=self.total,
            before=self._before,
            clean=self._clean,
            since=self._since,
            held=self._held.state(),
            trust=self.trust.state(),
        )

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state` gave."""
        self.total, self._clean = float(state["total"]), int(state["clean"])
        self._since = state["since"]
        self._before = float(state.get("before", self.total))
        if "held" in state:  # not in checkpoints of the first versions, nor the next
            self._held.load_state(state["held"])
        if "trust" in state:
            self.trust.load_state(state["trust"])

    def _warmup(self, iteration: int) -> float:
        if self._since is None:
            return 1.0
        done = max(0, iteration - self._since - 1)
        return warmup_factor(done, self.warmup_iters)

    def _hold(self, runner: Runner) -> None:
        if not self._held.active:
            return
        groups, schedulers = all_param_groups(runner), all_schedulers(runner)
        changed, told = self._held.hold(groups, schedulers)
        if changed:
            log_lr(runner)
        if told is not None:
            warn(messages.lr_held(told, runner.iter))

    def _change(self, runner: Runner, factor: float) -> None:
        self._hold(runner)
        if any(isinstance(g.get("lr"), Tensor) for g in all_param_groups(runner)):
            self._warn(messages.LR_IS_A_TENSOR)
        change_lr(runner, factor)
        self._note(runner, factor)
        self.total *= factor
        self._clean = 0

    def _note(self, runner: Runner, factor: float) -> None:
        groups, schedulers = all_param_groups(runner), all_schedulers(runner)
        self._held.changed(groups, schedulers, factor)


def _rates(runner: Runner, factor: float) -> list[float] | None:
    rates = known_rates(all_param_groups(runner))
    if rates is None or factor == 1:
        return rates
    return [lr * factor for lr in rates]


class LRTrust:
    """Counts healthy iterations since the learning rate last rose.

    One that is too high overflows soon after it is reached; what happens long after has
    another cause: one batch, one number that a kernel got wrong.

    Args:
        after: So many clear it, not necessarily in a row; ``None``: it is always to
            blame.
    """

    def __init__(self, after: int | None) -> None:
        self.after = after
        self._last: list[float] = []
        self._healthy = 0

    @property
    def cleared(self) -> bool:
        """Whether it has gone well for long enough."""
        return self.after is not None and self._healthy >= self.after

    def healthy(self, rates: Sequence[float] | None, iterations: int) -> None:
        """Healthy iterations have passed.

        Args:
            rates: The learning rate of each param group in the last of them; ``None``:
                not known, which clears nothing.
            iterations: How many.
        """
        if rates is None:
            return
        last, self._last = self._last, list(rates)
        # By more than rounding: schedules compute each from the one before.
        rose = self._last != last and any(
            new > old * (1 + 1e-9) for new, old in zip(rates, last)
        )
        if rose or len(last) != len(rates):
            self._healthy = 0
        else:
            self._healthy += iterations

    def begin_anew(self) -> None:
        """After an incident."""
        self._last, self._healthy = [], 0

    def state(self) -> dict[str, Any]:
        """Plain numbers."""
        return dict(last=list(self._last), healthy=self._healthy)

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state` gave."""
        self._last = [float(lr) for lr in state["last"]]
        self._healthy = int(state["healthy"])


def all_param_groups(runner: Runner) -> list[dict[str, Any]]:
    """The param groups of every optimizer, with those that hold the base LR."""
    wrappers = iter_wrappers(runner.optim_wrapper)
    return [group for _, wrapper in wrappers for group in wrapper.param_groups]


def all_schedulers(runner: Runner) -> list[Any]:
    """The parameter schedulers of every optimizer."""
    schedulers: Any = runner.param_schedulers or []
    if isinstance(schedulers, dict):
        return [s for own in schedulers.values() for s in own]
    return list(schedulers)


def log_lr(runner: Runner) -> None:
    """Let the logs have the learning rate of now, where RuntimeInfoHook had another."""
    for name, rates in runner.optim_wrapper.get_lr().items():
        if rates:
            replace_latest(runner.message_hub, f"train/{name}", float(rates[0]))


def change_lr(runner: Runner, factor: float) -> None:
    """Multiply the learning rate, now and for the rest of every schedule.

    Args:
        runner: In training; what is changed goes into its checkpoints.
        factor: Greater than 0; the inverse takes a change back.
    """
    # In one go, because optimizers may share a scheduler or a learning rate tensor.
    scale_lr(all_param_groups(runner), all_schedulers(runner), factor)
