"""Ranks agree whether one of them had to give up the iteration."""

from __future__ import annotations

from datetime import timedelta

import torch
import torch.distributed


class Vote:
    """One small collective per iteration, on CPU tensors in a group of its own.

    In the default group a vote could be paired with a collective of the model's loss.

    Args:
        timeout: Seconds to wait for the other ranks.
    """

    def __init__(self, timeout: int) -> None:
        self.timeout = timeout
        # Its construction is a collective as well.
        self._group = torch.distributed.new_group(
            backend="gloo", timeout=timedelta(seconds=timeout)
        )

    def cast(self, raised: bool) -> list[int]:
        """Ranks that raised. Waits for every rank.

        Raises:
            RuntimeError: The others did not come within the timeout.
        """
        ballots = torch.zeros(torch.distributed.get_world_size())
        ballots[torch.distributed.get_rank()] = float(raised)
        torch.distributed.all_reduce(ballots, group=self._group)
        return ballots.nonzero().flatten().tolist()
