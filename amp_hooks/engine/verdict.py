"""What an iteration's numbers say about it."""

from __future__ import annotations

from enum import Enum

from .words import in_plain_words


class Verdict(str, Enum):
    """Judgement on one training iteration, from harmless to lost.

    Attributes:
        HEALTHY: Gradients are finite, and so is what was measured of the forward pass.
            A loss that is not, while they are, does no harm.
        SCALE_OVERFLOW: The loss is finite, the scaled gradients are not. GradScaler's
            ordinary business: it skips the step and lowers the loss scale.
        FORWARD_NONFINITE: Gradients are not finite and neither was the loss; or logits,
            what a head hands to its loss, or a buffer became NaN or infinite. No loss
            scale cures that.
        GRAD_NONFINITE: Gradients are not finite and there is no loss scale to lower:
            no scaler, or the scale is at its floor.
        STATE_NONFINITE: A parameter, buffer, optimizer state or EMA weight holds NaN
            or infinity. It does not heal by itself.
        RAISED: The training step raised an exception because of NaN.
        DIVERGED: All numbers are finite, and the run has left its healthy range for
            good. HealthHook's verdict, on the run rather than on the iteration.
    """

    HEALTHY = "HEALTHY"
    SCALE_OVERFLOW = "SCALE_OVERFLOW"
    FORWARD_NONFINITE = "FORWARD_NONFINITE"
    GRAD_NONFINITE = "GRAD_NONFINITE"
    STATE_NONFINITE = "STATE_NONFINITE"
    RAISED = "RAISED"
    DIVERGED = "DIVERGED"

    @property
    def in_words(self) -> str:
        """As it is told to a person."""
        return in_plain_words(self.value)

    @property
    def is_of_the_batch(self) -> bool:
        """Whether the iteration's own batch may have done it."""
        return self.is_bad and self is not Verdict.DIVERGED

    @property
    def is_of_the_scale(self) -> bool:
        """Whether it was gradients alone that were not finite.

        Otherwise all of them are, by the loss or by StepGuardHook, and neither their
        names nor the loss scale have a part in it.
        """
        return self in (Verdict.SCALE_OVERFLOW, Verdict.GRAD_NONFINITE)

    @property
    def is_bad(self) -> bool:
        """Whether the iteration counts towards a rollback."""
        return self not in (Verdict.HEALTHY, Verdict.SCALE_OVERFLOW)


def judge(
    *,
    forward_finite: bool = True,
    grads_finite: bool = True,
    has_scaler: bool = False,
    scale_at_floor: bool = False,
    state_finite: bool = True,
    raised: bool = False,
) -> Verdict:
    """Judge one iteration; the gravest wins.

    Args:
        forward_finite: The loss that was propagated is finite, and so is what was
            measured on the way to it; or it does no harm.
        grads_finite: All gradients were finite where the optimizer stepped.
        has_scaler: A GradScaler scales the loss.
        scale_at_floor: The loss scale cannot usefully be lowered any more.
        state_finite: Learned state (weights, buffers, optimizer, EMA) is finite.
        raised: The step raised because of NaN.
    """
    if raised:
        return Verdict.RAISED
    if not state_finite:
        return Verdict.STATE_NONFINITE
    if not forward_finite:
        return Verdict.FORWARD_NONFINITE
    if grads_finite:
        return Verdict.HEALTHY
    if has_scaler and not scale_at_floor:
        return Verdict.SCALE_OVERFLOW
    return Verdict.GRAD_NONFINITE
