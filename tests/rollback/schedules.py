"""Every learning rate schedule that MMEngine and MMDetection offer, and usual chains.

For runs of 24 iterations, 4 an epoch.
"""

import mmdet.engine.schedulers  # noqa: F401  (registers QuadraticWarmup)
import pytest
from mmdet.registry import PARAM_SCHEDULERS as MMDET_SCHEDULERS
from mmengine.registry import PARAM_SCHEDULERS

EPOCH = 4
# Of every kind of scheduler, by the name without its suffix.
OPTIONS = {
    "Constant": [dict(factor=0.3, end=12)],
    "CosineAnnealing": [
        dict(T_max=20),
        dict(T_max=20, eta_min=0.01),
        dict(T_max=20, eta_min_ratio=0.05),
        dict(T_max=7, eta_min=0.001),  # and up again
    ],
    "CosineRestart": [
        dict(periods=[5, 9, 7], restart_weights=[1, 0.5, 0.2], eta_min=0.001),
        dict(periods=[8, 8], restart_weights=[1, 0.7], eta_min_ratio=0.01),
    ],
    "Exponential": [dict(gamma=0.9)],
    "Linear": [dict(start_factor=0.1, end=15), dict(end_factor=0.2, begin=3, end=20)],
    "MultiStep": [dict(milestones=[3, 8, 14], gamma=0.1)],
    "OneCycle": [
        dict(eta_max=0.5, total_steps=30),
        dict(eta_max=0.5, total_steps=30, three_phase=True),
        dict(eta_max=0.5, total_steps=30, anneal_strategy="linear"),
    ],
    "Poly": [dict(power=0.9, end=30), dict(power=2, eta_min=0.003, end=20)],
    "QuadraticWarmup": [dict(end=9)],
    "ReduceOnPlateau": [
        dict(patience=1),
        dict(patience=0, factor=0.5, min_value=0.004, cooldown=1),
        dict(patience=0, factor=0.5, threshold=0.2, threshold_rule="abs"),
        dict(patience=0, factor=0.5, eps=0.004),  # soon no reduction is large enough
        dict(patience=0, factor=0.5, rule="greater", min_value=[0.01, 0.004]),
    ],
    "Step": [dict(step_size=4, gamma=0.5)],
}
SUFFIXES = ("LR", "ParamScheduler")
CHAINS = {
    "1x": [
        dict(type="LinearLR", start_factor=0.001, end=9, by_epoch=False),
        dict(type="MultiStepLR", milestones=[3, 5], gamma=0.1, by_epoch=True),
    ],
    "rtmdet": [
        dict(type="LinearLR", start_factor=1e-5, end=5, by_epoch=False),
        dict(
            type="CosineAnnealingLR",
            **dict(begin=2, end=6, T_max=4, eta_min=0.002),
            by_epoch=True,
            convert_to_iter_based=True,
        ),
    ],
    "yolox": [
        dict(type="mmdet.QuadraticWarmupLR", end=1, convert_to_iter_based=True),
        dict(
            type="CosineAnnealingLR",
            **dict(begin=1, end=5, T_max=4, eta_min=0.001),
            convert_to_iter_based=True,
        ),
        dict(type="ConstantLR", factor=1, begin=5, end=6),
    ],
    "poly": [
        dict(type="LinearLR", start_factor=0.1, end=6, by_epoch=False),
        dict(type="PolyLR", power=0.9, eta_min=1e-3, begin=6, end=24, by_epoch=False),
    ],
    "plateau": [
        dict(type="LinearLR", start_factor=0.1, end=6, by_epoch=False),
        dict(type="ReduceOnPlateauLR", patience=0, factor=0.3, min_value=0.002),
    ],
}


def registered():
    """What MMEngine and MMDetection offer, whatever other tests have added."""
    found = {**PARAM_SCHEDULERS.module_dict, **MMDET_SCHEDULERS.module_dict}
    packages = ("mmengine", "mmdet")
    return {n: c for n, c in found.items() if c.__module__.split(".")[0] in packages}


def kind(name):
    for suffix in (*SUFFIXES, "Momentum"):
        if name.endswith(suffix):
            return name[: -len(suffix)]
    return name


def singles():
    for name in sorted(registered()):
        for i, options in enumerate(OPTIONS.get(kind(name), [])):
            if name.endswith(SUFFIXES):
                by_epoch = kind(name) == "ReduceOnPlateau"
                cfg = dict(type=name, by_epoch=by_epoch, **options)
                if name.endswith("ParamScheduler"):
                    cfg["param_name"] = "lr"
                yield pytest.param([cfg], id=f"{name}-{i}")


EVERY = [*singles(), *(pytest.param(chain, id=c) for c, chain in CHAINS.items())]
