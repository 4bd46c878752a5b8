"""An optimizer's state by parameter, for an optimizer that has changed since."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Dict

import torch
from torch import Tensor, nn

from ..engine import private
from ..engine.named import named_parameters
from ..engine.tensors import nonfinite_names

# ``optimizer``: its class; ``groups``: the parameters of each group, name and shape.
Layout = Dict[str, Any]


def layout_of(optimizer: torch.optim.Optimizer, model: nn.Module) -> Layout:
    """What a state dict of the optimizer does not say: whose each state is.

    Plain strings and lists, fit for a checkpoint. A parameter outside of the model is
    known by its place.
    """
    names = {id(p): name for name, p in named_parameters(model)}
    groups = [
        [
            f"{names.get(id(p), f'{i}.{j}')} {list(p.shape)}"
            for j, p in enumerate(group["params"])
        ]
        for i, group in enumerate(optimizer.param_groups)
    ]
    return dict(optimizer=type(optimizer).__name__, groups=groups)


def layout_by_place(saved: Mapping[str, Any], now: Layout) -> Layout:
    """Of a state dict without one: groups in the order of now, as far as they fit.

    Checkpoints of the first versions have none.
    """
    groups = []
    for i, group in enumerate(saved["param_groups"]):
        names = now["groups"][i] if i < len(now["groups"]) else []
        known = len(names) == len(group["params"])
        groups.append(names if known else [""] * len(group["params"]))
    return dict(now, groups=groups)


def fit_state(
    saved: dict[str, Any], layout: Layout, live: dict[str, Any], now: Layout
) -> dict[str, Any]:
    """The saved state dict, laid out as the optimizer is now.

    A parameter that the saved one does not know keeps its own state, unless that is
    not finite: then it begins without. So does every one where the optimizer is of
    another class.

    Args:
        saved: The optimizer's, or its wrapper's, as it was.
        layout: To that.
        live: As it is now.
        now: To that.
    """
    if layout == now:
        return saved
    known: dict[str, tuple[int, int]] = {}  # to group and number in the saved dict
    if layout["optimizer"] == now["optimizer"]:
        for g, names in enumerate(layout["groups"]):
            numbers = saved["param_groups"][g]["params"]
            known.update({name: (g, n) for name, n in zip(names, numbers)})
    state, groups = {}, []
    for names, group in zip(now["groups"], live["param_groups"]):
        told = [known[name][0] for name in names if name in known]
        hyper = saved["param_groups"][told[0]] if told else group
        groups.append({**group, **hyper, "params": group["params"]})
        for name, number in zip(names, group["params"]):
            source, key = saved["state"], known.get(name, (0, None))[1]
            if name not in known:
                source, key = live["state"], number
            own = source.get(key)
            if own is not None and (name in known or not nonfinite_names(own)):
                state[number] = own
    return {**saved, "state": state, "param_groups": groups}


def fitting(saved: Mapping[str, Any], live: Mapping[str, Any]) -> dict[str, Any]:
    """Of a model's state dict what has a place of its shape now; the rest is new."""
    kept = OrderedDict(saved)
    for name, value in saved.items():
        now = live.get(name, value)
        if isinstance(value, Tensor) and getattr(now, "shape", None) != value.shape:
            del kept[name]
    private.copy_metadata(saved, kept)
    return kept
