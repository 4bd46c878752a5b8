"""Read what a checkpoint knows of its run: the loss of every iteration, the scale."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...engine.safe_load import allow_mmengine_checkpoints
from ...engine.safe_read import read_safely
from ...engine.tensors import named_tensors, nonfinite_names
from .curves import Curve
from .history import Checkpoint

_CURVES = ("loss", "lr", "grad_norm")
# Other buffers may hold infinities by design, as attention masks do.
_NEVER_INFINITE = ("weight", "bias", "running_mean", "running_var")


def read_checkpoint(path: Path) -> Checkpoint:
    """Read it without executing anything that is in it.

    Tensors stay on the disk until each is looked at.

    Raises:
        Exception: Of many kinds, if it is damaged or not MMEngine's.
    """
    allow_mmengine_checkpoints()
    content = read_safely(path, map_location="cpu", mmap=True)
    meta = content["meta"]
    done = int(meta["iter"])
    curves = {}
    for name in _CURVES:
        history = content["message_hub"]["log_scalars"].get(f"train/{name}")
        # Iterations that raised have no entry; then the others have no certain place.
        if history is not None and len(history.data[0]) == done:
            values = np.array(history.data[0], dtype=np.float64)
            curves[name] = Curve(np.arange(done), values)
    scalers = list(_scalers(content.get("optimizer")))
    weights = {k: content.get(k) for k in ("state_dict", "ema_state_dict")}
    return Checkpoint(
        str(path),
        done,
        str(meta.get("time", "")),
        curves,
        scale=min((float(s["scale"]) for s in scalers), default=None),
        growth=min((int(s.get("_growth_tracker", 0)) for s in scalers), default=0),
        nonfinite=_poisoned(weights),
    )


def _scalers(optimizer: Any) -> list[dict[str, Any]]:
    """GradScaler's state, of each optimizer of an OptimWrapperDict."""
    if not isinstance(optimizer, dict):
        return []
    states = [optimizer, *(v for v in optimizer.values() if isinstance(v, dict))]
    found = [state.get("loss_scaler") for state in states]
    return [s for s in found if isinstance(s, dict) and "scale" in s]


def _poisoned(weights: dict[str, Any]) -> list[str]:
    suspicious = set(nonfinite_names(weights, limit=10**6))
    return [
        name
        for name, tensor in named_tensors(weights)
        if name in suspicious
        and (name.endswith(_NEVER_INFINITE) or bool(torch.isnan(tensor).any()))
    ]
