"""What the suite cannot see of a run: said once, while the run is young."""

from __future__ import annotations

from collections.abc import Iterator

from .recorder import IterationRecord

_ENOUGH = 10  # iterations: what is there is seen by then


class Blindness:
    """Knows which of a run's signals never came.

    A training loop of one's own may take its steps, or propagate its losses, in ways
    that nobody can see. What is missing then is missing silently.

    Attributes:
        iterations: Since training began.
        steps_unseen: Losses are propagated, and no step was ever seen.
    """

    def __init__(self) -> None:
        self.iterations = 0
        self.steps_unseen = False
        self._due = 0  # iterations at whose end a step was due
        self._steps = self._losses = self._past_wrapper = False

    def add(
        self,
        record: IterationRecord,
        refused: bool,
        past_wrapper: bool,
        within_step: bool = False,
    ) -> Iterator[str]:
        """Take in an iteration, before it is judged.

        Args:
            record: Its numbers.
            refused: A step was refused without looking at gradients.
            past_wrapper: A step was taken past the optimizer wrapper.
            within_step: Its gradients were computed within it.

        Yields:
            What to tell the user.
        """
        self.iterations += 1
        propagated = "backward_loss" in record.values
        self._losses |= propagated or bool(record.values.get("loss"))
        self._steps |= "found_inf" in record.values or refused
        self._due += record.step_due and propagated
        if past_wrapper and not self._past_wrapper:
            self._past_wrapper = True
            yield (
                "the training loop gives the torch optimizer a closure, as LBFGS needs "
                "it. Gradients are computed within the step, where they cannot be "
                "looked at: no step is refused; losses and what is measured of the "
                "forward pass decide, and snapshots are proven by healthy ones."
                if within_step
                else "the training loop steps the torch optimizer itself, past "
                "optim_wrapper.step. Its gradients are looked at just before, and "
                "StepGuardHook refuses a step by taking them away; what the loop does "
                "to loss scale and accumulation is not seen."
            )
        unseen = self._due >= _ENOUGH and not self._steps
        if unseen and not (self.steps_unseen or within_step):
            yield (
                f"no optimizer step has been seen in {self.iterations} iterations, "
                "though losses were propagated: the training loop updates the weights "
                "in a way of its own. No gradient can be looked at and no step be "
                "refused; losses and what is measured of the forward pass decide, and "
                "snapshots are proven by healthy ones. Step through "
                "runner.optim_wrapper, or the optimizer in it, to be guarded."
            )
        self.steps_unseen = record.steps_unseen = unseen or within_step
        if self.iterations == _ENOUGH and not self._losses:
            yield (
                f"no loss has been seen in {self.iterations} iterations: neither was "
                "one given to optim_wrapper.backward, nor does the training loop pass "
                "one to after_train_iter as outputs. Whether the run is healthy cannot "
                "be told."
            )
