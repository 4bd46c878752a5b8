"""What all processes of a run have to agree on."""

from __future__ import annotations

import mmengine.dist as dist
import torch


def any_rank(flag: bool) -> bool:
    """Whether the flag is set on any rank. A collective: call it on every rank."""
    if dist.get_world_size() == 1:
        return flag
    votes = torch.tensor(float(flag))
    dist.all_reduce(votes, "max")
    return bool(votes.item())
