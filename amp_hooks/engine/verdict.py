"""What an iteration's numbers say about it."""

from __future__ import annotations

from enum import Enum


class Verdict(str, Enum):
    """Judgement on one training iteration, from harmless to lost.

    Attributes:
        HEALTHY: Everything that was measured is finite.
        SCALE_OVERFLOW: The loss is finite, the scaled gradients are not. GradScaler's
            ordinary business: it skips the step and lowers the loss scale.
        FORWARD_NONFINITE: Loss or logits are not finite; no loss scale cures that.
        GRAD_NONFINITE: Gradients are not finite and there is no loss scale to lower:
            no scaler, or the scale is at its floor.
        STATE_NONFINITE: A parameter, buffer, optimizer state or EMA weight holds NaN
            or infinity. It does not heal by itself.
        RAISED: The training step raised an exception because of NaN.
    """

    HEALTHY = "HEALTHY"
    SCALE_OVERFLOW = "SCALE_OVERFLOW"
    FORWARD_NONFINITE = "FORWARD_NONFINITE"
    GRAD_NONFINITE = "GRAD_NONFINITE"
    STATE_NONFINITE = "STATE_NONFINITE"
    RAISED = "RAISED"

    @property
    def is_bad(self) -> bool:
        """Whether the iteration counts towards a rollback."""
        return self not in (Verdict.HEALTHY, Verdict.SCALE_OVERFLOW)


def judge(
    *,
    loss_finite: bool = True,
    logits_finite: bool = True,
    grads_finite: bool = True,
    has_scaler: bool = False,
    scale_at_floor: bool = False,
    state_finite: bool = True,
    raised: bool = False,
) -> Verdict:
    """Judge one iteration; the gravest wins.

    Args:
        loss_finite: Every loss of the iteration is finite.
        logits_finite: So are the logits, but for infinities that are there by design.
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
    if not (loss_finite and logits_finite):
        return Verdict.FORWARD_NONFINITE
    if grads_finite:
        return Verdict.HEALTHY
    if has_scaler and not scale_at_floor:
        return Verdict.SCALE_OVERFLOW
    return Verdict.GRAD_NONFINITE
