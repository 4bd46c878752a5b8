"""Losses that are not finite and do no harm."""

from __future__ import annotations

from collections.abc import Mapping

from .messages import warn


class HarmlessLosses:
    """Counts them and tells of each term once.

    A mean over no samples is NaN and has a gradient of zero (pytorch#116349), as has a
    term that is only logged (DAFormer#11): training goes on as if it were not there.

    Attributes:
        total: Iterations with such a term.
    """

    def __init__(self) -> None:
        self.total = 0
        self._told: set[str] = set()

    def add(self, losses: Mapping[str, float], propagated: bool, iteration: int) -> str:
        """An iteration with such terms.

        Args:
            losses: The terms and their values.
            propagated: They were part of the loss given to ``backward``.
            iteration: Which one.

        Returns:
            Why they do no harm, if one of them has not been told of; else ''.
        """
        self.total += 1
        new = [name for name in losses if name not in self._told]
        if not new:
            return ""
        self._told.update(new)
        why = (
            "all gradients were finite, as of a mean over no samples"
            if propagated
            else "the loss that was propagated was finite, so it is only logged"
        )
        shown = ", ".join(f"{name} ({losses[name]})" for name in new)
        warn(
            f"iteration {iteration}: {shown} is not finite, but {why}. It does no harm "
            "and training goes on; this is said once for each term."
        )
        return why
